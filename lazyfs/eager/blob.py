"""Fetches a blob in parallel ranges and returns its bytes in order, at the reader's pace.

One connection seldom fills the link (a registry in another region, a limit per connection), so a few ranges are fetched at a time.
The bytes ahead of the reader are bounded per blob and per process, so a slow disk slows the senders down, and memory depends neither
on the size of a blob nor on the number of blobs: each blob always has the range that is read next. The reader gets the bytes of the
first range as they arrive, so that they can be stored at once. A server that only sends whole blobs is read as one stream.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from lazyfs.errors import LazyfsError, RangeIgnored
from lazyfs.format.manifest import Descriptor
from lazyfs.source.protocol import ImageSource

RANGE: Final = 4 << 20
_UNDER_WAY: Final = 4
"""Half of the requests to a registry at a time (registry/ranges.py), so that two blobs can share them."""
_SHARED: Final = trio.CapacityLimiter(16)
"""Further ranges of all blobs together: enough for four blobs at full speed."""
_STEP: Final = 128 << 10
"""Bytes to collect before they are handed on: the most that a kill loses on a slow link."""
_LONG_STEP: Final = 512 << 10


class BlobReader:
    """A ByteStream of one blob, from byte `start` to its last. Its ranges run in `nursery`, which is cancelled if the blob is not read to its end."""

    def __init__(self, source: ImageSource, blob: Descriptor, nursery: trio.Nursery, start: int = 0) -> None:
        self._source = source
        self._blob = blob
        self._nursery = nursery
        self._position = self._next = start
        self._ahead: deque[_Range] = deque()

    async def receive_exactly(self, count: int) -> bytes:
        """The next `count` bytes. Raises SourceError."""
        parts: list[memoryview] = []
        while count:
            parts.append(await self.receive_some(count))
            count -= len(parts[-1])
        return b"".join(parts)

    async def receive_some(self, most: int) -> memoryview:
        """The next bytes as soon as there are any, at most `most`. Raises SourceError."""
        self._look_ahead()
        try:
            some = await self._ahead[0].take(most)
        except RangeIgnored:
            if self._ahead[0].is_whole:
                raise
            self._read_as_one()
            some = await self._ahead[0].take(most)
        self._position += len(some)
        if self._ahead[0].is_taken:
            self._ahead.popleft()
        self._look_ahead()
        return some

    def _look_ahead(self) -> None:
        # A range that has arrived and is being read is no longer in flight.
        being_read = bool(self._ahead) and self._ahead[0].has_arrived and self._position > self._ahead[0].start
        while len(self._ahead) < _UNDER_WAY + being_read and self._next < self._blob.size:
            end = min(self._next + RANGE, self._blob.size)
            ahead = _Range(self._source, self._blob, self._next, end, is_shared=bool(self._ahead))
            if ahead.is_shared:
                try:
                    _SHARED.acquire_on_behalf_of_nowait(ahead)
                except trio.WouldBlock:
                    return  # tried again when the next bytes are requested
            self._begin(ahead)

    def _read_as_one(self) -> None:
        for each in self._ahead:
            each.cancel()
        self._ahead.clear()
        self._begin(_Range(self._source, self._blob, self._position, self._blob.size, is_whole=True))

    def _begin(self, ahead: _Range) -> None:
        self._ahead.append(ahead)
        self._nursery.start_soon(ahead.fetch)
        self._next = ahead.end


class _Range:
    """Blob bytes `[start, end)` being fetched."""

    def __init__(
        self, source: ImageSource, blob: Descriptor, start: int, end: int, *, is_shared: bool = False, is_whole: bool = False
    ) -> None:
        """`is_shared`: counts against _SHARED until `fetch` ends. `is_whole`: the server sends the whole blob; bytes before `start` are
        dropped."""
        self._source = source
        self._blob = blob
        self.start = start
        self.end = end
        self._arrived = start
        self.is_whole = is_whole
        self.is_shared = is_shared
        self.is_read = False
        """Whether the reader has reached this range."""
        self._buffered: deque[memoryview] = deque()
        self._waiting = 0
        """Bytes in `_here`."""
        self._error: LazyfsError | None = None
        self._changed = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def has_arrived(self) -> bool:
        """Whether the range has arrived completely."""
        return self._arrived == self.end

    @property
    def is_taken(self) -> bool:
        """Whether the reader has taken all of it."""
        return self.has_arrived and not self._buffered

    def cancel(self) -> None:
        """Stop fetching; the range is no longer wanted."""
        self._scope.cancel()

    async def fetch(self) -> None:
        """Fetch the bytes, or keep the error for the reader. A shared range ends when the reader has taken all of it, or when cancelled."""
        try:
            with self._scope:
                try:
                    await self._receive()
                except LazyfsError as error:
                    self._error = error
                self._announce()
                while self.is_shared and not (self._error or self.is_taken):
                    await self._changed.wait()
        finally:
            if self.is_shared:
                _SHARED.release_on_behalf_of(self)

    async def take(self, most: int) -> memoryview:
        """The next bytes, at most `most`. Raises the error of `fetch` after the bytes that arrived before it."""
        self.is_read = True
        while not self._buffered:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        first = self._buffered.popleft()
        some = first[:most]
        if len(first) > most:
            self._buffered.appendleft(first[most:])
        self._waiting -= len(some)
        self._announce()
        return some

    async def _receive(self) -> None:
        blob = self._blob
        start = 0 if self.is_whole else self._arrived
        async with self._source.open_range(blob.digest, blob.size, start, self.end, urls=blob.urls) as stream:
            while start < self._arrived:
                start += len(await stream.receive_exactly(min(_STEP, self._arrived - start)))
            while self._arrived < self.end:
                # Each hand-over costs a turn of the event loop, and bytes ahead of the reader are not stored anyway.
                step = _STEP if self.is_read else _LONG_STEP
                data = await stream.receive_exactly(min(step, self.end - self._arrived))
                self._buffered.append(memoryview(data))
                self._arrived += len(data)
                self._waiting += len(data)
                self._announce()
                while self._waiting >= RANGE:  # of a whole blob: the reader slows the sender down
                    await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
