"""The scrub: slowly reads everything, to find bit rot.

A portable mount finds damage when it reads. The kernel, which serves objects natively, checks nothing, as with any file system:
there, only the scrub finds it. What is damaged is dropped, and fetched again by the next reader.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lazyfs.store.check import check_chunk
from lazyfs.store.rows import Row
from lazyfs.store.store import Store


class Step(NamedTuple):
    """The result of one step."""

    bytes: int
    dropped: tuple[str, ...]
    """Objects that were found damaged, and are not complete any more."""
    is_last: bool
    """This step ended a full round."""


class Scrub:
    """The state of the scrub. For one thread at a time."""

    def __init__(self, store: Store, protected: Callable[[str], bool]) -> None:
        """`protected` as for Eviction.remove: of the files without rows, protected ones are not removed."""
        self._store = store
        self._protected = protected
        self._rows = self._round()
        self.chunks = 0
        self.bytes = 0
        self.damaged = 0
        """Chunks that it has found damaged."""
        self.rounds = 0

    def step(self, size: int) -> Step:
        """Read and check the next chunks, about `size` bytes. Raises StoreUnusable."""
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
        """All chunks, from a random start: a process that never lives to the end of a round still checks different parts each
        time."""
        names = sorted(self._store.index.names())
        start = random.randrange(len(names)) if names else 0
        for name in names[start:] + names[:start]:
            yield from self._store.index.rows_of(name)
