"""A whole blob in parallel ranges: its bytes in order, at the reader's pace.

One connection seldom gets what the line can carry (a store in another region, a limit for each connection), so a few ranges
are under way at a time. What is ahead of the reader is bounded, so a slow disk holds the senders back, and memory does
not depend on the blob. A range that breaks off is asked for again: only its bytes are lost.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from lazyfs.errors import LazyfsError, Unreachable
from lazyfs.format.manifest import Descriptor
from lazyfs.source.protocol import ImageSource

RANGE: Final = 4 << 20
_UNDER_WAY: Final = 4
"""Half of what a registry is asked for at a time (registry/ranges.py), so that two blobs share it and neither waits."""
_TRIES: Final = 3


class BlobReader:
    """A ByteStream of one blob, from its first byte to its last. Its ranges live in `nursery`."""

    def __init__(self, source: ImageSource, blob: Descriptor, nursery: trio.Nursery) -> None:
        self._source = source
        self._blob = blob
        self._nursery = nursery
        self._next = 0
        self._ahead: deque[_Range] = deque()
        self._here = memoryview(b"")

    async def receive_exactly(self, count: int) -> bytes:
        """The next `count` bytes. Raises SourceError; RangeIgnored where the server sends nothing but whole blobs."""
        parts: list[memoryview] = []
        while count:
            if not self._here:
                self._look_ahead()
                self._here = await self._ahead.popleft().wait()
                self._look_ahead()
            part = self._here[:count]
            self._here = self._here[count:]
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _look_ahead(self) -> None:
        while len(self._ahead) < _UNDER_WAY and self._next < self._blob.size:
            end = min(self._next + RANGE, self._blob.size)
            ahead = _Range(self._source, self._blob, self._next, end)
            self._ahead.append(ahead)
            self._nursery.start_soon(ahead.fetch)
            self._next = end


class _Range:
    """Blob bytes `[start, end)` on their way."""

    def __init__(self, source: ImageSource, blob: Descriptor, start: int, end: int) -> None:
        self._source = source
        self._blob = blob
        self._start = start
        self._end = end
        self._data = memoryview(b"")
        self._error: LazyfsError | None = None
        self._done = trio.Event()

    async def fetch(self) -> None:
        """Bring the bytes, or the error that whoever waits is to see."""
        for _ in range(_TRIES):
            try:
                await self._fetch()
            except LazyfsError as error:
                self._error = error
                if not isinstance(error, Unreachable):
                    break
            else:
                self._error = None
                break
        self._done.set()

    async def wait(self) -> memoryview:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._data

    async def _fetch(self) -> None:
        blob = self._blob
        async with self._source.open_range(blob.digest, blob.size, self._start, self._end) as stream:
            self._data = memoryview(await stream.receive_exactly(self._end - self._start))
