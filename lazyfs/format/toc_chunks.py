"""The chunks that a TOC names: where each begins and ends in the blob, and a check that the blob can hold them all.

A blob of 17 KB can be described as 200 files of 17 MB each, if they all lie in one gzip member and overlap. Each would be
verified and kept, so a layer is refused unless the blob can really contain its chunks:

- chunks of one member are identical (two files with equal content) or do not overlap;
- a member can inflate to its chunks: each of its bytes becomes at most Dialect.ratio bytes (deflate: 1032);
- all files together have no more bytes than the blob could inflate to, or 256 MiB. A file may name a chunk twice, so
  the sum over distinct chunks would not bound it.
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
        """`toc_offset` ends the last member; `what` names the layer in errors. Without `enforced` only `member_end` is determined.

        `ratio`: the most bytes that one byte of a member can become.
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
        """Further chunks of members in `_first`."""

    def make(self, file_offset: int, size: int, digest: bytes, member: int, inner: int, name: str) -> Chunk:
        """A chunk of the file `name`. `finish` fills in the end of its member. Raises InvalidToc."""
        if not 0 <= member < self._toc_offset:
            raise InvalidToc(
                f"{self._what}: {show(name)} lies at offset {member}, outside the blob's data (0 to {self._toc_offset})"
            )
        # deflate can make data longer, but no honest writer doubles it: bytes beyond that are not read for this chunk.
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
        """Complete all chunks. Raises InvalidToc if the blob cannot contain them."""
        starts = sorted(self._first)
        ends = dict(zip(starts, [*starts[1:], self._toc_offset], strict=False))  # without data there are no ends
        for member, chunk in self._first.items():
            self._complete(chunk, ends[member])
        for chunk in self._more:
            self._complete(chunk, ends[chunk.member])
        if self._more and self._enforced:
            self._check_apart()

    def _complete(self, chunk: Chunk, end: int) -> None:
        if end < chunk.member_end:
            msgspec.structs.force_setattr(chunk, "member_end", end)  # not visible to any caller yet
        if chunk.inner + chunk.size > self._ratio * (end - chunk.member) and self._enforced:
            raise InvalidToc(
                f"{self._what}: a chunk ends {chunk.inner + chunk.size} bytes into the member at offset {chunk.member}, and that"
                f" member's {end - chunk.member} bytes cannot become so many"
            )

    def _check_apart(self) -> None:
        """Sorts once, n log n; free for the usual layer with one chunk per member."""
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
