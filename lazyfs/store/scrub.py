"""The slow reading of everything, to find what has rotted while nobody looked.

A portable mount finds damage when it reads. The kernel, which serves objects natively, checks nothing, as with the files of a full
pull: there it is this that finds it. What is damaged is dropped, and fetched again by the next reader.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lazyfs.store.check import check_chunk
from lazyfs.store.rows import Row
from lazyfs.store.store import Store


class Step(NamedTuple):
    """What one step of it has done."""

    bytes: int
    dropped: tuple[str, ...]
    """Objects that were found damaged, and are objects no more."""
    is_last: bool
    """Everything has been read once since the last one."""


class Scrub:
    """Where it stands. For one thread at a time."""

    def __init__(self, store: Store, protected: Callable[[str], bool]) -> None:
        """`protected` as for Eviction.remove: of files that no row speaks of, those are not removed."""
        self._store = store
        self._protected = protected
        self._rows = self._round()
        self.chunks = 0
        self.bytes = 0
        self.damaged = 0
        """Chunks that it has found so."""
        self.rounds = 0

    def step(self, size: int) -> Step:
        """Read and check the chunks that come next, `size` bytes of them or a little more. Raises StoreUnusable."""
        read, dropped = 0, []
        for row in self._rows:
            before = self._store.damaged
            check_chunk(self._store, row, keep_cached=False)
            self.chunks += 1
            read += row.size
            if self._store.damaged > before:
                self.damaged += 1
                dropped.append(row.object)
            if read >= size:
                self.bytes += read
                return Step(read, tuple(dropped), False)
        self.bytes += read
        self.rounds += 1
        self._store.eviction.remove_strays(self._protected)
        self._rows = self._round()
        return Step(read, tuple(dropped), True)

    def _round(self) -> Iterator[Row]:
        """All chunks, from anywhere on: a process that never lives to the end of a round reads another part than the one before."""
        names = sorted(self._store.index.names())
        start = random.randrange(len(names)) if names else 0
        for name in names[start:] + names[:start]:
            yield from self._store.index.rows_of(name)
