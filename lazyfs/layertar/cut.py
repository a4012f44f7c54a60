"""Where a file is cut into chunks: the one place that decides it.

The converter cuts what it writes, checks whether a layer is cut in that way already, and names objects of files that it cuts; so does
lazyfs for a layer that it fetches whole. The same file must be cut alike wherever the same object is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from lazyfs.format.tar import ReadAt
from lazyfs.layertar.plan import Planned

CHUNK_SIZE: Final = 4 << 20
"""Bytes: what the converter cuts larger files into when nobody says anything else."""


class Span(NamedTuple):
    """A chunk to be, bytes of its file."""

    offset: int
    size: int


Cut = Callable[[Planned, ReadAt], Iterable[Span]]
"""The spans of a file, in order: they cover it, none is empty or larger than format/toc.py's MAX_CHUNK_SIZE, and a file without bytes has
none. A pure function of the file's size and bytes, which `read_at` gives; called in threads, more than once for a file."""


def every(chunk_size: int) -> Cut:
    """Chunks of `chunk_size` bytes, the last one shorter."""

    def spans(planned: Planned, _read_at: ReadAt) -> Iterator[Span]:
        size = planned.entry.size
        return (Span(offset, min(chunk_size, size - offset)) for offset in range(0, size, chunk_size))

    return spans


DEFAULT: Final = every(CHUNK_SIZE)
"""What an image that nobody has converted is cut by. Files of such a layer that are in the store were cut by it: another way to cut would
fetch the layer again."""
