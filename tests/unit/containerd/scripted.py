"""An image of lazy layers in a registry that a test holds in its hand."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from lazyfs.errors import NotFound, Unreachable
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.dialect import TocClaim
from lazyfs.format.digest import Digest
from lazyfs.format.estargz import ESTARGZ, TOC_DIGEST
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP
from lazyfs.format.member import compress_member
from lazyfs.format.toc import parse_toc
from lazyfs.snapshots.labels import Claim
from lazyfs.snapshots.snapshot import LazyLayer
from lazyfs.source.protocol import Document
from tests.bad.oci import Json, Oci, file, sha256
from tests.toc_member import read_toc_member
from tests.unit.fetch.scripted import ScriptedSource, _Stream

HOST = "registry.test"
REPOSITORY = f"docker://{HOST}/image"


class ScriptedRegistry(ScriptedSource):
    """A repository with documents, which can be unreachable and records that it was closed."""

    name = REPOSITORY
    authority = f"docker://{HOST}"

    def __init__(self, documents: dict[str, Document], *blobs: bytes) -> None:
        super().__init__(*blobs)
        self._documents = documents
        self.asked: list[str] = []
        """Documents, in order."""
        self.urls: list[str] = []
        """That were to be asked for blobs."""
        self.away = False
        self.closed = False
        self.may_close = trio.Event()
        self.may_close.set()

    async def document(self, reference: str) -> Document:
        self.asked.append(reference)
        await self.gate.wait()
        if self.away:
            raise Unreachable("the registry is away")
        if reference not in self._documents:
            raise NotFound(f"there is no {reference}")
        return self._documents[reference]

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[_Stream]:
        assert not self.closed
        self.urls += urls
        if self.away:
            self.ranges.append((start, end))
            raise Unreachable("the registry is away")
        async with super().open_range(digest, size, start, end) as stream:
            yield stream

    async def aclose(self) -> None:
        await self.may_close.wait()
        self.closed = True


class ScriptedImage:
    """One lazy layer for each of `layers`, which are files' contents by name."""

    def __init__(self, folder: Path, *layers: dict[str, bytes], urls: Sequence[str] = ()) -> None:
        """`urls`: of each layer."""
        oci = Oci(folder)
        descriptors = [_layer(oci, files) | {"urls": urls} for files in layers]
        self.digest = Digest(oci.image(*descriptors)["digest"])
        """The manifest's."""
        self.blobs = [oci.blob_path(descriptor["digest"]).read_bytes() for descriptor in descriptors]
        self.lazy = [_lazy(descriptor, blob) for descriptor, blob in zip(descriptors, self.blobs, strict=True)]
        data = oci.blob_path(self.digest).read_bytes()
        self.manifest = Document(json.loads(data)["mediaType"], self.digest, data)

    def registry(self) -> ScriptedRegistry:
        """A new one that has the image, under the tag `v1`."""
        return ScriptedRegistry({"v1": self.manifest, self.digest: self.manifest}, *self.blobs)

    def layer(self, number: int) -> LayerBlob:
        """As the resolver identifies it."""
        lazy, blob = self.lazy[number], self.blobs[number]
        toc = read_toc_member(blob[lazy.toc_offset : -FOOTER_SIZE], "the layer")
        return LayerBlob(lazy.digest, lazy.size, lazy.toc_offset, parse_toc(toc, lazy.toc_offset, "the layer"))

    def toc(self, number: int) -> bytes:
        lazy = self.lazy[number]
        return read_toc_member(self.blobs[number][lazy.toc_offset : -FOOTER_SIZE], "the layer")

    def claim(self, number: int, **changes: Any) -> Claim:
        """What CRI's labels say of a layer, or something else."""
        lazy = self.lazy[number]
        claim = Claim(f"chain-{number}", f"{HOST}/image:v1", lazy.digest, TocClaim(ESTARGZ, lazy.toc_digest), None, (), None)
        return claim._replace(**changes)


def _layer(oci: Oci, files: dict[str, bytes]) -> Json:
    members, entries = b"", []
    for name, data in files.items():
        member = compress_member(data + b"padding, and the next header")
        entries.append(file(name, size=len(data), offset=len(members), digest=sha256(data), chunkDigest=sha256(data)))
        members += member
    return oci.lazy(entries, members)


def _lazy(descriptor: Json, blob: bytes) -> LazyLayer:
    offset = parse_footer(blob[-FOOTER_SIZE:], len(blob), "the layer")
    toc_digest = Digest(descriptor["annotations"][TOC_DIGEST])
    return LazyLayer(REPOSITORY, Digest(descriptor["digest"]), len(blob), OCI_LAYER_GZIP, toc_digest, offset)
