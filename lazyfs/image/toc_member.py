"""The compressed TOC of a layer: located in the blob as the layer's dialect says, fetched and unpacked.

It is unverified until its digest has been checked, which needs all of it. Until then only its own claim says how long its JSON is.
That claim is accepted up to 256 MiB and up to the cost that its compressed bytes allow (format/bounds.py). A TOC that arrived with
the first range stays in memory, at most 4 MiB for eStargz. A larger one waits on disk until there is memory to parse it, so that
many TOCs, or slow ones, hold no memory.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import IO, Final

import trio

from lazyfs.errors import InvalidToc
from lazyfs.format.bounds import DESCRIPTION, DESCRIPTION_RATIO
from lazyfs.format.dialect import Dialect, TocLocation
from lazyfs.format.manifest import Descriptor
from lazyfs.format.toc_raw import MAX_TOC_SIZE
from lazyfs.source.protocol import ImageSource
from lazyfs.store.unnamed import unnamed_file, write

_PIECE: Final = 1 << 20
_HEAD: Final = 64 << 10
"""Compressed bytes in which the TOC says how long it is."""
_OVERHEAD: Final = 16 << 20
"""How much longer than its JSON a compressed TOC may be. Packing adds almost nothing, but readers tolerate data after the TOC."""


class TocMember:
    """A TOC as stored in the blob."""

    def __init__(self, dialect: Dialect, location: TocLocation, what: str, start: bytes, rest: IO[bytes] | None = None) -> None:
        """`start` is the whole TOC, or its beginning if `rest` holds the whole. Raises InvalidToc, InvalidInput if it cannot be a TOC."""
        self.data_end = location.data_end
        """Where the chunks end in the blob."""
        self.size = location.end - location.start
        """Bytes that actually arrived."""
        self._dialect = dialect
        self._what = what
        self._start = start
        self._rest = rest
        self.json_size = self._checked(dialect.json_size(location, start[:_HEAD], what))
        """Bytes of its JSON: its own claim, checked against the bounds."""

    def document(self) -> bytes | bytearray:
        """Blocking. The bytes that the manifest's digest covers, unverified. Raises InvalidInput."""
        return self._dialect.document(self._pieces(), self.json_size, self._what)

    def _checked(self, size: int) -> int:
        what = self._what
        most = min(MAX_TOC_SIZE, DESCRIPTION + DESCRIPTION_RATIO * self.size)
        if size > MAX_TOC_SIZE or size > most:
            raise InvalidToc(f"{what}: the TOC has {size} bytes, more than {MAX_TOC_SIZE if size > MAX_TOC_SIZE else most}")
        if size < 0:
            raise InvalidToc(f"{what}: the TOC has {size} bytes, which is not a size")
        if self.size > 2 * size + _OVERHEAD:
            raise InvalidToc(f"{what}: the compressed TOC has {self.size} bytes, more than its JSON of {size} bytes can take")
        if size > self._dialect.ratio * self.size:
            raise InvalidToc(f"{what}: the compressed TOC has {self.size} bytes, which cannot become {size}")
        return size

    def _pieces(self) -> Iterator[bytes]:
        if self._rest is None:
            yield self._start
            return
        for offset in range(0, self.size, _PIECE):
            yield os.pread(self._rest.fileno(), min(_PIECE, self.size - offset), offset)


class _Incoming:
    """A TOC being written to disk, checked as soon as its first bytes have arrived."""

    def __init__(self, dialect: Dialect, location: TocLocation, what: str, file: IO[bytes], folder: str | None) -> None:
        self._about = dialect, location, what
        self._wanted = min(_HEAD, location.end - location.start)
        self._file = file
        self._folder = folder
        self._head = b""
        self.member: TocMember | None = None

    async def add(self, data: bytes) -> None:
        """Add its next bytes. Raises InvalidToc, InvalidInput, LocalError."""
        if self.member is None:
            self._head += data[: self._wanted - len(self._head)]
            if len(self._head) == self._wanted:
                self.member = TocMember(*self._about, self._head, self._file)
        await trio.to_thread.run_sync(write, self._file, data, self._folder)


@asynccontextmanager
async def fetch_toc_member(
    source: ImageSource, descriptor: Descriptor, dialect: Dialect, first: tuple[int, int], folder: str | None
) -> AsyncIterator[TocMember]:
    """Fetch the compressed TOC of a layer: with one range, the dialect's `first`, for most blobs; with two for a large TOC, which is
    then kept in a temporary file in `folder`, or else TMPDIR.

    Raises NotLazy, InvalidToc, InvalidInput, SourceError, LocalError. On exit, or when cancelled, nothing remains on disk.
    """
    size, what = descriptor.size, f"layer {descriptor.digest}"
    start, end = first
    async with source.open_range(descriptor.digest, size, start, end, urls=descriptor.urls) as stream:
        known = bytes(await stream.receive_exactly(end - start))
    location = dialect.locate(size, start, known, what)
    if location.end - location.start > MAX_TOC_SIZE:
        raise InvalidToc(f"{what}: the compressed TOC has {location.end - location.start} bytes, more than {MAX_TOC_SIZE}")
    if start <= location.start and location.end <= end:
        yield TocMember(dialect, location, what, known[location.start - start : location.end - start])
        return
    file = await trio.to_thread.run_sync(unnamed_file, folder)
    with file:
        incoming = _Incoming(dialect, location, what, file, folder)
        await _fetch_range(source, descriptor, location.start, min(location.end, start), incoming)
        await incoming.add(known[max(location.start - start, 0) : max(location.end - start, 0)])
        del known
        await _fetch_range(source, descriptor, max(location.start, end), location.end, incoming)
        assert incoming.member is not None
        yield incoming.member


async def _fetch_range(source: ImageSource, descriptor: Descriptor, start: int, end: int, incoming: _Incoming) -> None:
    """Fetch the blob's bytes `[start, end)`, if there are any."""
    if start >= end:
        return
    async with source.open_range(descriptor.digest, descriptor.size, start, end, urls=descriptor.urls) as stream:
        step = _HEAD
        while start < end:
            await incoming.add(bytes(await stream.receive_exactly(min(step, end - start))))
            start += step
            step = _PIECE


def toc_in(blob: IO[bytes], size: int, dialect: Dialect, what: str) -> TocMember:
    """Blocking. The compressed TOC in a blob of `size` bytes on disk. Raises NotLazy, InvalidToc, InvalidInput."""
    start, end = dialect.first_range(size, what)
    location = dialect.locate(size, start, os.pread(blob.fileno(), end - start, start), what)
    if location.end - location.start > MAX_TOC_SIZE:
        raise InvalidToc(f"{what}: the compressed TOC has {location.end - location.start} bytes, more than {MAX_TOC_SIZE}")
    return TocMember(dialect, location, what, os.pread(blob.fileno(), location.end - location.start, location.start))
