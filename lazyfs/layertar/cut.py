"""Decides where a file is cut into chunks.

The converter cuts files by it, and checks by it whether a layer can be kept; lazyfs cuts the files of eager layers by it. A file
must be cut the same way everywhere to become the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from lazyfs.format.tar import ReadAt
from lazyfs.layertar.plan import Planned

CHUNK_SIZE: Final = 4 << 20
"""Bytes: the converter's default size of a chunk."""


class Span(NamedTuple):
    """The range of a file that becomes a chunk, in bytes."""

    offset: int
    size: int


Cut = Callable[[Planned, ReadAt], Iterable[Span]]
"""The spans of a file, in order: they cover it, none is empty or larger than format/toc.py's MAX_CHUNK_SIZE, and an empty file has
none. A pure function of the file's size and bytes, which `read_at` returns; called in threads, more than once for a file."""


def every(chunk_size: int) -> Cut:
    """Chunks of `chunk_size` bytes, the last one shorter."""

    def spans(planned: Planned, _read_at: ReadAt) -> Iterator[Span]:
        size = planned.entry.size
        return (Span(offset, min(chunk_size, size - offset)) for offset in range(0, size, chunk_size))

    return spans


DEFAULT: Final = every(CHUNK_SIZE)
"""Cuts the files of eager layers. Those in the store were cut by it: after a change of it such layers would be fetched again."""
