"""Somewhere to convert from and to, in memory: an ImageSource and an ImageSink that remembers what was done to it."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from converter.convert import ImageSelection, convert
from converter.layer import Style
from converter.layers import Request
from converter.progress import Progress
from converter.report import Report
from lazyfs.errors import BadAnswer, NotFound
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.layertar.cut import every
from lazyfs.source.protocol import Document, ImageSource

Json = dict[str, Any]
AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}


class MemoryRepository:
    """Blobs and documents by digest, documents by tag; `done` lists what was written, in order."""

    def __init__(self, name: str = "memory:place") -> None:
        self.name = self.authority = name
        self.blobs: dict[Digest, bytes] = {}
        self.documents: dict[str, Document] = {}
        self.done: list[str] = []
        self.mounts_from: MemoryRepository | None = None
        self.comes_wrong: set[Digest] = set()
        """Blobs that are wrong the next time they are read."""

    async def document(self, reference: str) -> Document:
        if reference not in self.documents:
            raise NotFound(f"there is no {reference}")
        return self.documents[reference]

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        return self.blobs[digest]

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[Stream]:
        self.done.append(f"read {digest}")
        data = self.blobs[digest][start:end]
        if digest in self.comes_wrong:
            self.comes_wrong.remove(digest)
            data = data[:-1] + bytes([data[-1] ^ 1])
        yield Stream(data)

    def distrust(self, digest: Digest) -> None:
        self.done.append(f"distrust {digest}")

    async def has_blob(self, digest: Digest, size: int) -> bool:
        return digest in self.blobs

    async def mount_blob(self, digest: Digest, size: int, origin: ImageSource) -> bool:
        if self.mounts_from is None or digest not in self.mounts_from.blobs:
            return False
        self.blobs[digest] = self.mounts_from.blobs[digest]
        self.done.append(f"mount {digest}")
        return True

    async def put_blob(self, digest: Digest, path: Path, progress: Callable[[int], None]) -> None:
        data = path.read_bytes()
        assert digest_of(data) == digest
        self.blobs[digest] = data
        self.done.append(f"blob {digest}")
        progress(len(data))

    async def put_document(self, reference: str, document: Document) -> None:
        body = json.loads(document.data)
        for blob in [body["config"], *body["layers"]] if "layers" in body else []:
            assert blob["digest"] in self.blobs, "a manifest is written after what it names"
        for manifest in body.get("manifests", []):
            assert manifest["digest"] in self.documents, "an index is written after what it names"
        assert digest_of(document.data) == document.digest
        self.documents[reference] = self.documents[document.digest] = document
        self.done.append(f"document {reference}")

    async def aclose(self) -> None:
        """Nothing to close."""

    def add_blob(self, data: bytes, media_type: str, **more: Any) -> Json:
        """Hold a blob; its descriptor."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}

    def add_document(self, body: Json, *tags: str, media_type: str = OCI_MANIFEST) -> Json:
        """Hold a document; its descriptor."""
        data = json.dumps(body).encode()
        document = Document(media_type, digest_of(data), data)
        for reference in (*tags, document.digest):
            self.documents[reference] = document
        return {"mediaType": media_type, "digest": document.digest, "size": len(data)}

    def add_image(self, *tars: bytes, tag: str = "v1", config: Json | None = None, **manifest: Any) -> Json:
        """Hold an image of these tars, gzipped; the manifest's descriptor."""
        layers = [self.add_blob(gzip.compress(tar, mtime=0), OCI_LAYER_GZIP) for tar in tars]
        return self.add_manifest(layers, [digest_of(tar) for tar in tars], tag, config, **manifest)

    def add_manifest(
        self, layers: Sequence[Json], diff_ids: Sequence[str], tag: str = "v1", config: Json | None = None, **manifest: Any
    ) -> Json:
        """Hold an image of layers that are here."""
        body = {**AMD64, "rootfs": {"type": "layers", "diff_ids": list(diff_ids)}, **(config or {})}
        described = self.add_blob(json.dumps(body).encode(), OCI_CONFIG)
        whole = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": list(layers), **manifest}
        return self.add_document(whole, tag)

    def add_index(self, *entries: Json, tag: str = "v1", **index: Any) -> Json:
        """Hold an index."""
        return self.add_document(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **index}, tag, media_type=OCI_INDEX
        )

    def body(self, reference: str = "v1") -> Json:
        """A document, decoded."""
        return json.loads(self.documents[reference].data)  # type: ignore[no-any-return]

    def config(self, reference: str = "v1") -> Json:
        """The config of an image, decoded."""
        return json.loads(self.blobs[self.body(reference)["config"]["digest"]])  # type: ignore[no-any-return]

    def layers(self, reference: str = "v1") -> list[bytes]:
        """The blobs of an image."""
        return [self.blobs[layer["digest"]] for layer in self.body(reference)["layers"]]


class Stream:
    """A RangeStream over bytes."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    @property
    def received(self) -> int:
        return self._file.tell()

    async def receive_exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise BadAnswer("it ends early")
        return data


def request(
    chunk_size: int = 4096, level: int = 6, prioritized: Sequence[bytes] = (), workers: int = 2, keep: bool = True
) -> Request:
    """A request, with a small chunk size."""
    return Request(Style(every(chunk_size), level), tuple(prioritized), workers, keep)


async def converted(
    source: MemoryRepository, sink: MemoryRepository, wanted: Request | None = None, selection: ImageSelection | None = None
) -> Report:
    """Convert `v1` of `source` to `v1` of `sink`."""
    with Progress(shown=False) as progress:
        return await convert(
            source, "v1", sink, "v1", selection or ImageSelection(None, named=False), wanted or request(), progress
        )
