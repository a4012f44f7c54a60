"""Cuts the files of a spooled tar into chunks, names them by their digests, and puts them into the store.

They get the same names as in an image converted with the defaults, so that a file is one object however it arrived. The names are
derived only from hashes computed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from lazyfs.format.entry import Chunk
from lazyfs.format.tar import ReadAt
from lazyfs.layertar.batches import batches as in_batches
from lazyfs.layertar.content import read_content
from lazyfs.layertar.cut import DEFAULT
from lazyfs.layertar.plan import Planned
from lazyfs.store.content import content_of
from lazyfs.store.store import Store

_BATCH: Final = 8 << 20
_BATCH_COUNT: Final = 128


def batches(plan: Sequence[Planned]) -> Iterator[list[int]]:
    """The positions of files that are not empty, in batches for one thread each."""
    filled = (position for position, planned in enumerate(plan) if planned.entry.size)
    return in_batches(filled, lambda position: plan[position].entry.size, weight=_BATCH, count=_BATCH_COUNT)


def keep_file(store: Store, planned: Planned, start: int, read_at: ReadAt) -> tuple[Chunk, ...]:
    """Blocking. Hash a file of the tar and put into the store what is missing of it. Returns its chunks, numbered from offset `start`
    of an imaginary blob in which each chunk is a member.

    Raises StoreFull, StoreUnusable: what was stored before stays.
    """
    data = b""
    chunks = []
    for offset, length in DEFAULT(planned, read_at):
        data = read_content(planned, offset, length, read_at)
        chunks.append(Chunk(offset, length, hashlib.sha256(data).digest(), start + offset, 0, start + offset + length))
    content = content_of(chunks)
    for number in store.missing(content, 0, len(chunks)):
        # A file of several chunks has a name only when all are hashed: it is read a second time, from the page cache.
        if len(chunks) > 1:
            data = read_content(planned, chunks[number].file_offset, chunks[number].size, read_at)
        store.keep(content, number, data)
    return tuple(chunks)
