"""Reads an image's documents, from containerd if it has them, and remembers them to be written there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from lazyfs.format.digest import Digest
from lazyfs.format.manifest import MAX_DOCUMENT
from lazyfs.pull.content import Content
from lazyfs.source.protocol import Document, ImageSource, RangeStream


class Documents:
    """An ImageSource to resolve an image with."""

    def __init__(self, source: ImageSource, content: Content) -> None:
        self._source = source
        self._content = content
        self.seen: list[Document] = []
        """Index and manifest, or the manifest alone. The media type is empty if the document came from containerd."""
        self.blobs: dict[Digest, bytes] = {}
        """The config."""

    @property
    def name(self) -> str:
        """See ImageSource."""
        return self._source.name

    @property
    def authority(self) -> str:
        """See ImageSource."""
        return self._source.authority

    async def document(self, reference: str) -> Document:
        """See ImageSource. A tag is always fetched: it may have moved."""
        known = await self._content.read(Digest(reference), MAX_DOCUMENT) if reference.startswith("sha256:") else None
        if known is None:
            self.seen.append(await self._source.document(reference))
        else:
            self.seen.append(Document("", Digest(reference), known))
        return self.seen[-1]

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        """See ImageSource."""
        known = await self._content.read(digest, limit)
        self.blobs[digest] = await self._source.small_blob(digest, limit) if known is None else known
        return self.blobs[digest]

    async def connect_ahead(self, count: int) -> None:
        """See ImageSource."""
        await self._source.connect_ahead(count)

    def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AbstractAsyncContextManager[RangeStream]:
        """See ImageSource."""
        return self._source.open_range(digest, size, start, end, urls=urls, deadline=deadline)

    def distrust(self, digest: Digest) -> None:
        """See ImageSource."""
        self._source.distrust(digest)

    async def aclose(self) -> None:
        """See ImageSource."""
        await self._source.aclose()
