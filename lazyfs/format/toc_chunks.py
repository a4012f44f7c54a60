"""The chunks that a TOC names: where each one's bytes begin and end in the blob, and that together they are no more than it can hold.

A blob of 17 KB can be described as 200 files of 17 MB each, if they all lie in one gzip member and overlap. Every one of them would be
verified and kept, so a layer is refused unless what its chunks name can come out of the blob once:

- chunks of one member are the same bytes of it (two files with one content), or lie apart;
- a member has room for its chunks: a byte of it becomes at most so many (deflate: 1032; Dialect.ratio);
- all files together have no more bytes than the blob could inflate to, or 256 MiB. A file may name a chunk twice, so that the
  sum over the chunks alone would not bound it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec

from lazyfs.errors import InvalidToc, show
from lazyfs.format.bounds import ZEROS
from lazyfs.format.entry import Chunk
from lazyfs.format.member import MAX_RATIO

_SLACK: Final = 1 << 20


class Chunks:
    """The chunks of all files of one layer."""

    def __init__(self, toc_offset: int, what: str, *, enforced: bool = True, ratio: int = MAX_RATIO) -> None:
        """`toc_offset` ends the last member; `what` names the layer in errors. Not `enforced`: only `member_end` is found.

        `ratio`: how many bytes one byte of a member can become.
        """
        self._toc_offset = toc_offset
        self._what = what
        self._enforced = enforced
        self._ratio = ratio
        self._max_total = max(ZEROS, ratio * toc_offset)
        self._total = 0
        self._first: dict[int, Chunk] = {}
        """By member."""
        self._more: list[Chunk] = []
        """Further chunks of members that have one already."""

    def make(self, file_offset: int, size: int, digest: bytes, member: int, inner: int, name: str) -> Chunk:
        """A chunk of the file `name`, whose member's end is known when all chunks are. Raises InvalidToc."""
        if not 0 <= member < self._toc_offset:
            raise InvalidToc(
                f"{self._what}: {show(name)} lies at offset {member}, outside the blob's data (0 to {self._toc_offset})"
            )
        # deflate can make data longer, but no honest writer doubles it: what lies further is not read for this chunk.
        chunk = Chunk(file_offset, size, digest, member, inner, member + 2 * (inner + size) + _SLACK)
        if self._first.setdefault(member, chunk) is not chunk:
            self._more.append(chunk)
        self._total += size
        if self._total > self._max_total and self._enforced:
            raise InvalidToc(
                f"{self._what}: its files have more than {self._max_total} bytes together, and its {self._toc_offset} bytes of data"
                " cannot become so many"
            )
        return chunk

    def finish(self) -> None:
        """Complete all chunks. Raises InvalidToc where they cannot be in the blob."""
        starts = sorted(self._first)
        ends = dict(zip(starts, [*starts[1:], self._toc_offset], strict=False))  # no data, no ends
        for member, chunk in self._first.items():
            self._complete(chunk, ends[member])
        for chunk in self._more:
            self._complete(chunk, ends[chunk.member])
        if self._more and self._enforced:
            self._check_apart()

    def _complete(self, chunk: Chunk, end: int) -> None:
        if end < chunk.member_end:
            msgspec.structs.force_setattr(chunk, "member_end", end)  # nobody has seen it yet
        if chunk.inner + chunk.size > self._ratio * (end - chunk.member) and self._enforced:
            raise InvalidToc(
                f"{self._what}: a chunk ends {chunk.inner + chunk.size} bytes into the member at offset {chunk.member}, and that"
                f" member's {end - chunk.member} bytes cannot become so many"
            )

    def _check_apart(self) -> None:
        """Sorted once: n log n, and nothing for the usual layer, each of whose members has one chunk."""
        shared = {chunk.member for chunk in self._more}
        chunks = self._more + [self._first[member] for member in shared]
        chunks.sort(key=lambda chunk: (chunk.member, chunk.inner, chunk.size))
        for before, chunk in pairwise(chunks):
            if chunk.member != before.member or chunk.inner >= before.inner + before.size:
                continue
            if (chunk.inner, chunk.size, chunk.digest) != (before.inner, before.size, before.digest):
                raise InvalidToc(
                    f"{self._what}: two chunks of the member at offset {chunk.member} overlap, {before.size} bytes at {before.inner}"
                    f" and {chunk.size} bytes at {chunk.inner}"
                )
