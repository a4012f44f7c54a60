"""An image source in memory that counts what is asked of it, and small eStargz layers for it."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from lazyfs.errors import NotFound, Unreachable
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.footer import build_footer
from lazyfs.format.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.format.member import compress_member
from lazyfs.source.protocol import Document


class MemorySource:
    """Holds documents by tag and digest, and blobs by digest."""

    def __init__(self) -> None:
        self.authority = self.name = "memory:image"
        self.documents: dict[str, Document] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        """`document REF`, `blob DIGEST` and `range DIGEST START END`, in order."""
        self.away = False

    async def document(self, reference: str) -> Document:
        self._ask(f"document {reference}")
        if reference not in self.documents:
            raise NotFound(f"there is no {reference}")
        return self.documents[reference]

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        self._ask(f"blob {digest}")
        return self.blobs[digest]

    async def connect_ahead(self, count: int) -> None:
        """Nothing is far away."""

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[_Stream]:
        self._ask(f"range {digest} {start} {end}")
        yield _Stream(io.BytesIO(self.blobs[digest][start:end]))

    def distrust(self, digest: Digest) -> None:
        self._ask(f"distrust {digest}")

    async def aclose(self) -> None:
        """Nothing to close."""

    def _ask(self, what: str) -> None:
        if self.away:
            raise Unreachable("the source is away", hint="wait")
        self.asked.append(what)

    def put(self, data: bytes) -> dict[str, Any]:
        """Hold a blob; its descriptor but for the media type."""
        self.blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data)}

    def put_document(self, media_type: str, body: dict[str, Any], *tags: str) -> Digest:
        """Hold a document under its digest and its tags."""
        data = json.dumps(body).encode()
        document = Document(media_type, digest_of(data), data)
        for reference in (*tags, document.digest):
            self.documents[reference] = document
        return document.digest

    def put_image(self, *layers: bytes, tag: str = "v1", annotated: bool = True, **changes: Any) -> Digest:
        """Hold an image of these layers (blobs), with or without (`annotated`) the TOC digests in the manifest; `changes` are the config's."""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(b"")] * len(layers)},
            **changes,
        }
        described = [
            {
                "mediaType": OCI_LAYER_GZIP,
                **self.put(blob),
                "annotations": {TOC_DIGEST: digest_of(toc_of(blob))} if annotated else {},
            }
            for blob in layers
        ]
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **self.put(json.dumps(config).encode())},
            "layers": described,
        }
        return self.put_document(OCI_MANIFEST, body, tag)


class _Stream:
    def __init__(self, data: io.BytesIO) -> None:
        self._data = data

    @property
    def received(self) -> int:
        return self._data.tell()

    async def receive_exactly(self, count: int) -> bytes:
        return self._data.read(count)


_TOCS: dict[Digest, bytes] = {}


def make_blob(toc: Any, padding: int = 0) -> bytes:
    """A blob that is a TOC and nothing else; `padding` bytes of data stand before it."""
    data = toc if isinstance(toc, bytes) else json.dumps(toc).encode()
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        info = tarfile.TarInfo("stargz.index.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    blob = bytes(padding) + compress_member(target.getvalue()) + build_footer(padding)
    _TOCS[digest_of(blob)] = data
    return blob


def toc_of(blob: bytes) -> bytes:
    """The TOC that `make_blob` put into it."""
    return _TOCS[digest_of(blob)]
