"""The files of a spooled tar: cut into chunks, named by their digests, and kept in the store.

They get the names that a converted image gives them at its defaults, so that the same file is one object, whichever way
it came. Their bytes are hashed here, and the names are made of nothing else.
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
    """The positions of files that are not empty, as many together as a thread takes up at once."""
    filled = (position for position, planned in enumerate(plan) if planned.entry.size)
    return in_batches(filled, lambda position: plan[position].entry.size, weight=_BATCH, count=_BATCH_COUNT)


def keep_file(store: Store, planned: Planned, start: int, read_at: ReadAt) -> tuple[Chunk, ...]:
    """Blocking. Hash a file of a tar that `read_at` reads, and keep as much of it as is not here. Its chunks, which begin at `start`
    of a blob that does not exist: one chunk behind the other, as if each were a member.

    Raises StoreFull, StoreUnusable: what was kept before stays.
    """
    data = b""
    chunks = []
    for offset, length in DEFAULT(planned, read_at):
        data = read_content(planned, offset, length, read_at)
        chunks.append(Chunk(offset, length, hashlib.sha256(data).digest(), start + offset, 0, start + offset + length))
    content = content_of(chunks)
    for number in store.missing(content, 0, len(chunks)):
        # A file of several chunks has no name before its last one is hashed: read once more, from the page cache.
        if len(chunks) > 1:
            data = read_content(planned, chunks[number].file_offset, chunks[number].size, read_at)
        store.keep(content, number, data)
    return tuple(chunks)
