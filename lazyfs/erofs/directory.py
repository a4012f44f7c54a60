"""A directory's data: blocks of 4 KiB, each with its entries followed by their names, sorted by name across blocks.

The kernel looks a name up by bisecting blocks and then entries, so hundreds of thousands of names cost it a few reads.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from lazyfs.erofs.ondisk import BLOCK, DIRENT, DIRENT_SIZE

_DIRENT_FORMAT: Final = DIRENT.format[1:]


class Extent(NamedTuple):
    """The division of a directory's names into blocks."""

    starts: tuple[int, ...]
    """Index of each block's first name."""
    size: int
    """Bytes of the directory: full blocks, and the used part of the last one."""


def extent_of(names: Sequence[bytes]) -> Extent:
    """Divide `names` (sorted, with `.` and `..`, each at most 255 bytes) into blocks."""
    size = DIRENT_SIZE * len(names) + sum(map(len, names))
    if size <= BLOCK:
        return Extent((0,), size)
    starts = [0]
    used = 0
    for index, name in enumerate(names):
        needed = DIRENT_SIZE + len(name)
        if used + needed > BLOCK:
            starts.append(index)
            used = 0
        used += needed
    return Extent(tuple(starts), (len(starts) - 1) * BLOCK + used)


def directory_data(names: Sequence[bytes], numbers: Sequence[tuple[int, int]], extent: Extent) -> bytes:
    """The directory's bytes. `numbers` are (nid, file type) of `names`; every block but the last is padded to its full size."""
    blocks = []
    for start, end in zip(extent.starts, (*extent.starts[1:], len(names)), strict=True):
        offset = DIRENT_SIZE * (end - start)
        fields: list[int] = []
        for index in range(start, end):
            nid, kind = numbers[index]
            fields += (nid, offset, kind)
            offset += len(names[index])
        block = _dirents(end - start).pack(*fields) + b"".join(names[start:end])
        blocks.append(block if end == len(names) else block.ljust(BLOCK, b"\0"))
    return b"".join(blocks)


@lru_cache(maxsize=BLOCK // DIRENT_SIZE)
def _dirents(count: int) -> struct.Struct:
    return struct.Struct("<" + _DIRENT_FORMAT * count)
