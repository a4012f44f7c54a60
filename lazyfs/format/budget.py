"""The memory budget for parsing, shared by all layers in a process.

format/bounds.py bounds what one layer may cost, and so the memory that parsing it needs. A process serves many images, and parsing
all their layers at once would need the sum. So a parser reserves memory first and waits until it is free. A reservation is
held while a thread parses, never while waiting for a registry: a slow registry cannot keep others from parsing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from lazyfs.format.bounds import DESCRIPTION, DESCRIPTION_RATIO

PARSING: Final = 192 << 20
"""Bytes: enough for a layer like torch's, with 33,000 entries, beside a few of the usual size. The GIL allows no more parallelism."""
TAR_WEIGHT: Final = 4
"""Bytes of memory per byte of description (format/bounds.py) that an eager layer needs until its TOC is written."""
_TOC_WEIGHT: Final = 12
"""The most bytes that a TOC's entries need per byte of its JSON."""


def toc_memory(json_size: int, arrived: int) -> int:
    """Bytes that parsing a TOC may need: its text, and its entries, which the `arrived` bytes of its member bound as well."""
    return json_size + min(_TOC_WEIGHT * json_size, DESCRIPTION + DESCRIPTION_RATIO * arrived)


class Reservation:
    """Memory that a parser has reserved."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size

    def shrink(self, size: int) -> None:
        """Keep only `size` bytes, if that is less than before."""
        self._budget.give_back(max(0, self.size - size))
        self.size = min(self.size, size)


class Budget:
    """A number of bytes, given out first come, first served, so that large layers do not starve. One layer always fits."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[Reservation]:
        """Reserve `size` bytes; waits until they are free. Cancelled: nothing is reserved."""
        if self._waiting or not self._fits(size):
            await self._wait(size)
        else:
            self._held += size
        reservation = Reservation(self, size)
        try:
            yield reservation
        finally:
            self.give_back(reservation.size)

    def give_back(self, size: int) -> None:
        """Free `size` reserved bytes."""
        self._held -= size
        self._admit()

    async def _wait(self, size: int) -> None:
        turn = size, trio.Event()
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except trio.Cancelled:
            if turn[1].is_set():
                self.give_back(size)
            else:
                self._waiting.remove(turn)
                self._admit()
            raise

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self._size

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self._held += size
            turn.set()


_parsing: trio.lowlevel.RunVar[Budget] = trio.lowlevel.RunVar("lazyfs parsing budget")


def parsing_budget() -> Budget:
    """The budget of this process, or more exactly of this trio run."""
    try:
        return _parsing.get()
    except LookupError:
        budget = Budget(PARSING)
        _parsing.set(budget)
        return budget
