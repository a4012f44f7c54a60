"""Counts the missing chunks of some objects, and keeps the count up to date as chunks arrive and are removed.

Status is asked for ten times a second, and an image may have a million chunks. So they are looked up once, for the first
status. After that, the index reports every chunk that it adds, and the objects whose rows it deletes; these are looked up again
by the next status. For changes by this process, the count is exact.

Removals by other processes are noticed at once, through a counter in the index, and everything is looked up again. What they
add is noticed later: everything is looked up at most once a second, for at most one fiftieth of the time, and only if the index
has changed. So "nothing is missing" is true when it is reported, and "something is missing" may be a moment old. Removals by a
lazyfs version without the counter are noticed as late as additions.
"""

from __future__ import annotations

import threading
import time
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from lazyfs.store.content import Content
from lazyfs.store.index_reader import HeldChunk
from lazyfs.store.missing import absent

_NAMES_A_LOOK: Final = 1000
_LOOK_PAUSE: Final = 1.0
_SHARE: Final = 50


class Missing(NamedTuple):
    """What is not in the store. Chunks with the same digest count once."""

    chunks: int
    size: int
    """Uncompressed bytes."""


class IndexQueries(Protocol):
    """What a tally needs of the index."""

    def held_many(self, names: Sequence[str]) -> dict[str, dict[int, HeldChunk]]: ...

    def version(self) -> tuple[int, ...]: ...

    def check_removals(self) -> None: ...


class Tally:
    """The missing chunks of some objects. Any thread may call it. Takes 150 bytes an object and 17 bytes a chunk."""

    def __init__(self, rows: IndexQueries, contents: Iterable[Content]) -> None:
        """Blocking, 1 µs a chunk. Nothing is known before the first `measure`."""
        self._rows = rows
        self._objects: dict[str, tuple[int, Content]] = {}
        """By name: the number of the object's first chunk in the arrays below, and its content."""
        self._digest_numbers = array("I")
        """For each chunk, the number of its digest."""
        self._sizes = array("Q")
        """For each digest."""
        numbers: dict[bytes, int] = {}
        for content in contents:
            if content.name in self._objects:
                continue
            self._objects[content.name] = (len(self._digest_numbers), content)
            for index, digest in enumerate(content.digests):
                number = numbers.setdefault(digest, len(numbers))
                if number == len(self._sizes):
                    self._sizes.append(content.chunk_size(index))
                self._digest_numbers.append(number)
        self._missing = bytearray(b"\1") * len(self._digest_numbers)
        self._lacking = array("I", bytes(4 * len(self._sizes)))
        """For each digest, how many chunks with it are missing."""
        for number in self._digest_numbers:
            self._lacking[number] += 1
        self._chunks, self._size = len(self._sizes), sum(self._sizes)
        self._lock = threading.Lock()
        self._measuring = threading.Lock()
        self._arrived: list[tuple[str, int]] | None = None
        """Chunks that arrived during the lookup in progress; None if there is none."""
        self._stale: set[str] = set()
        self._all_stale = True
        self._version: tuple[int, ...] = ()
        self._pause_until = 0.0

    def arrived(self, name: str, index: int) -> None:
        """A chunk is in the store now."""
        place = self._objects.get(name)
        if place is not None and index < len(place[1].digests):
            with self._lock:
                if self._arrived is not None:
                    self._arrived.append((name, index))
                self._set(place[0] + index, missing=False)

    def invalidate(self, names: Iterable[str]) -> None:
        """Rows of these objects may have been deleted. Called after the deletion."""
        with self._lock:
            self._stale.update(name for name in names if name in self._objects)

    def invalidate_all(self) -> None:
        """Any row may have been deleted."""
        with self._lock:
            self._all_stale = True

    def measure(self) -> Missing:
        """Count what is missing now. Blocking, but only for two queries of 10 µs if nothing was invalidated. Raises
        StoreUnusable."""
        with self._measuring:
            self._rows.check_removals()
            version = self._rows.version()
            now = time.monotonic()
            with self._lock:
                everything = self._all_stale or (version != self._version and now >= self._pause_until)
                names = list(self._objects) if everything else list(self._stale)
                self._all_stale, self._stale = False, set()
                self._arrived = []
            try:
                for at in range(0, len(names), _NAMES_A_LOOK):
                    self._count_again(names[at : at + _NAMES_A_LOOK])
            except BaseException:
                self.invalidate_all()
                raise
            finally:
                with self._lock:
                    # The lookup may have been done before they arrived.
                    for name, index in self._arrived:
                        self._set(self._objects[name][0] + index, missing=False)
                    self._arrived = None
            if everything:
                self._version = version
                took = time.monotonic() - now
                self._pause_until = now + max(_LOOK_PAUSE, _SHARE * took)
            return Missing(self._chunks, self._size)

    def _count_again(self, names: Sequence[str]) -> None:
        held = self._rows.held_many(names)
        nothing: dict[int, HeldChunk] = {}
        with self._lock:
            for name in names:
                first, content = self._objects[name]
                count = len(content.digests)
                missing = set(absent(content, range(count), held.get(name, nothing)))
                for index in range(count):
                    self._set(first + index, missing=index in missing)

    def _set(self, chunk: int, *, missing: bool) -> None:
        if self._missing[chunk] == missing:
            return
        self._missing[chunk] = missing
        number = self._digest_numbers[chunk]
        if missing:
            if not self._lacking[number]:
                self._chunks += 1
                self._size += self._sizes[number]
            self._lacking[number] += 1
        else:
            self._lacking[number] -= 1
            if not self._lacking[number]:
                self._chunks -= 1
                self._size -= self._sizes[number]


class Tallies:
    """The tallies that follow an index, as long as they are referenced. Any thread may call it."""

    def __init__(self) -> None:
        self._following: tuple[weakref.ref[Tally], ...] = ()
        self._changing = threading.Lock()

    def add(self, tally: Tally) -> None:
        """Report all changes to it from now on."""
        with self._changing:
            self._following = (*(each for each in self._following if each() is not None), weakref.ref(tally))

    def arrived(self, name: str, index: int) -> None:
        """See Tally."""
        for each in self._following:
            tally = each()
            if tally is not None:
                tally.arrived(name, index)

    def invalidate(self, names: Sequence[str]) -> None:
        """See Tally."""
        for each in self._following:
            tally = each()
            if tally is not None:
                tally.invalidate(names)

    def invalidate_all(self) -> None:
        """See Tally."""
        for each in self._following:
            tally = each()
            if tally is not None:
                tally.invalidate_all()
