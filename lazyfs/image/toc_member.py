"""The gzip member that holds a layer's TOC: found by the blob's footer, fetched, and inflated.

Nothing vouches for it before the TOC's digest has been checked, which takes all of its JSON. Until then the member's own tar header
says how long that is, and is believed only within bounds: not beyond 256 MiB, and not beyond what so many compressed bytes may
cost (format/bounds.py). A TOC that came with the blob's end stays in memory, at most 4 MiB. A larger one waits on disk until
there is room to parse it, so that many of them, or slow ones, hold no memory.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import IO, Final

import trio
from isal import igzip_lib

from lazyfs.errors import InvalidInput, InvalidTar, InvalidToc, NotLazy, show
from lazyfs.format.bounds import DESCRIPTION, DESCRIPTION_RATIO
from lazyfs.format.entry import TOC_NAME
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.manifest import Descriptor
from lazyfs.format.member import MAX_RATIO, inflate_member
from lazyfs.format.tar_header import BLOCK, header_number
from lazyfs.format.toc_raw import MAX_TOC_SIZE
from lazyfs.layertar.spool import unnamed_file, write
from lazyfs.source.protocol import ImageSource

_LARGEST_GUESS: Final = 4 << 20
_PIECE: Final = 1 << 20
_HEAD: Final = 64 << 10
"""Compressed bytes that the tar header at the member's beginning is looked for in."""
_IN_ONE_GO: Final = 32 << 20
"""Bytes of JSON that may be in memory twice for a moment."""
_OVERHEAD: Final = 16 << 20
"""How much longer than its JSON a member may be. Deflate adds next to nothing, but readers tolerate what follows the TOC."""


class TocMember:
    """A TOC's member as it lies in the blob."""

    def __init__(self, offset: int, size: int, what: str, start: bytes, rest: IO[bytes] | None = None) -> None:
        """`start` is all of it, or its beginning, and then `rest` holds all of it. Raises InvalidToc, InvalidInput: it cannot be a TOC."""
        self.offset = offset
        """In the blob."""
        self.size = size
        """Bytes that really came."""
        self._what = what
        self._start = start
        self._rest = rest
        self.json_size = self._claimed_size()
        """Bytes of its JSON, as its tar header says, and not more than it may have."""

    def json(self) -> bytes | bytearray:
        """Blocking. The TOC itself. Raises InvalidInput."""
        if self._rest is None and self.json_size <= _IN_ONE_GO:
            inflated = inflate_member(self._start, BLOCK + self.json_size, f"the TOC of {self._what}")
            return bytes(memoryview(inflated)[BLOCK : BLOCK + self.json_size])
        return self._inflate()

    def _claimed_size(self) -> int:
        what = self._what
        header = bytes(inflate_member(self._start[:_HEAD], BLOCK, f"the TOC of {what}")[:BLOCK])
        name = header[:100].rstrip(b"\0")
        if name != TOC_NAME:
            raise InvalidToc(f"{what}: where the TOC should be there is the tar entry {show(name)}")
        try:
            size = header_number(header[124:136], what)
        except InvalidTar:
            raise InvalidToc(f"{what}: the TOC's tar header has a broken size") from None
        most = min(MAX_TOC_SIZE, DESCRIPTION + DESCRIPTION_RATIO * self.size)
        if size > MAX_TOC_SIZE or size > most:
            raise InvalidToc(f"{what}: the TOC has {size} bytes, more than {MAX_TOC_SIZE if size > MAX_TOC_SIZE else most}")
        if size < 0:
            raise InvalidToc(f"{what}: the TOC has {size} bytes, which is no size")
        if self.size > 2 * size + _OVERHEAD:
            raise InvalidToc(f"{what}: the compressed TOC has {self.size} bytes, more than its JSON of {size} bytes can take")
        if BLOCK + size > MAX_RATIO * self.size:
            raise InvalidToc(f"{what}: the compressed TOC has {self.size} bytes, which cannot become {size}")
        return size

    def _pieces(self) -> Iterator[bytes]:
        if self._rest is None:
            yield self._start
            return
        for offset in range(0, self.size, _PIECE):
            yield os.pread(self._rest.fileno(), min(_PIECE, self.size - offset), offset)

    def _inflate(self) -> bytearray:
        """All of the JSON, in memory once."""
        stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        skip = BLOCK
        json = bytearray()
        try:
            for piece in self._pieces():
                more = piece
                while len(json) < self.json_size and not stream.eof:
                    part = stream.decompress(more, min(skip or _PIECE, skip or self.json_size - len(json)))
                    more = b""
                    if skip:
                        skip -= len(part)
                    else:
                        json += part
                    if not part:
                        break  # it needs the next piece
        except igzip_lib.error as error:  # type: ignore[misc]  # the stub gives it no class
            raise InvalidInput(f"the TOC of {self._what}: the gzip member is broken ({error})") from None
        if len(json) < self.json_size:
            raise InvalidInput(f"the TOC of {self._what}: the gzip member ends after {len(json)} of {self.json_size} bytes")
        return json


@asynccontextmanager
async def fetch_toc_member(
    source: ImageSource, descriptor: Descriptor, what: str, folder: str | None
) -> AsyncIterator[TocMember]:
    """The TOC's gzip member. One range for most blobs, two for those with a large TOC, which is kept in `folder`, else in TMPDIR, meanwhile.

    Raises NotLazy, InvalidToc, InvalidInput, SourceError, LocalError. Left or cancelled: nothing remains on disk.
    """
    size = descriptor.size
    if size <= FOOTER_SIZE:
        raise NotLazy(f"{what} is an ordinary layer without an eStargz footer")
    start = max(0, size - first_guess(size))
    async with source.open_range(descriptor.digest, size, start, size) as stream:
        tail = bytes(await stream.receive_exactly(size - start))
    offset = parse_footer(tail[-FOOTER_SIZE:], size, what)
    if size - offset > MAX_TOC_SIZE:
        raise InvalidToc(f"{what}: the compressed TOC has {size - offset} bytes, more than {MAX_TOC_SIZE}")
    if offset >= start:
        yield TocMember(offset, size - FOOTER_SIZE - offset, what, tail[offset - start : -FOOTER_SIZE])
        return
    file = await trio.to_thread.run_sync(unnamed_file, folder)
    with file:
        async with source.open_range(descriptor.digest, size, offset, start) as stream:
            begin = bytes(await stream.receive_exactly(min(_HEAD, start - offset)))
            head = begin if len(begin) == _HEAD else begin + tail[:_HEAD]
            member = TocMember(offset, size - FOOTER_SIZE - offset, what, head, file)
            await trio.to_thread.run_sync(write, file, begin, folder)
            for at in range(offset + len(begin), start, _PIECE):
                piece = bytes(await stream.receive_exactly(min(_PIECE, start - at)))
                await trio.to_thread.run_sync(write, file, piece, folder)
        await trio.to_thread.run_sync(write, file, tail[:-FOOTER_SIZE], folder)
        del tail
        yield member


def first_guess(size: int) -> int:
    """How much of a blob's end to ask for at first. TOCs measured 0.4 to 0.7 % of their blob; a guess too small costs a
    round trip, one too large costs bytes: a layer of large files has a small TOC, and `size` is only a claim."""
    return min(size, max(32 << 10, size // 100), _LARGEST_GUESS)


def read_toc_member(member: bytes, what: str) -> bytes | bytearray:
    """Blocking. The TOC's JSON out of its gzip member, which holds a tar entry. Raises InvalidToc, InvalidInput."""
    return TocMember(0, len(member), what, member).json()
