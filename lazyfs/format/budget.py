"""Memory for parsing, which all layers of one process share.

What a layer may cost is bounded (format/bounds.py), and so is what one needs while it is parsed. But a process has many images, and
parsing all their layers at once would take the sum of that. So a parser holds room first, and waits where there is
none. It is held while threads work, never while a registry is waited for: nobody can keep others from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from lazyfs.format.bounds import DESCRIPTION, DESCRIPTION_RATIO

PARSING: Final = 192 << 20
"""Bytes: a layer of torch's 33,000 entries and some of the usual size at a time. Python parses no two at once anyway."""
TAR_WEIGHT: Final = 4
"""What a layer that is fetched whole takes, in bytes for each byte of its description (format/bounds.py), until its TOC is written."""
_TOC_WEIGHT: Final = 12
"""What the entries of a TOC take at the most, in bytes for each byte of its JSON."""


def toc_memory(json_size: int, arrived: int) -> int:
    """Bytes that parsing a TOC may take: its text, and its entries, which its member's `arrived` bytes bound as well."""
    return json_size + min(_TOC_WEIGHT * json_size, DESCRIPTION + DESCRIPTION_RATIO * arrived)


class Reservation:
    """Room that somebody holds."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size

    def shrink(self, size: int) -> None:
        """Hold only `size` bytes from now on, if that is less."""
        self._budget.give_back(max(0, self.size - size))
        self.size = min(self.size, size)


class Budget:
    """So many bytes. First come, first served, so that a large layer's turn comes as well; one layer always fits."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[Reservation]:
        """Hold `size` bytes; wait until they are free. Cancelled: none are held."""
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
        """`size` bytes of what is held are free."""
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
    """The room of this process, or to be exact of this run of trio."""
    try:
        return _parsing.get()
    except LookupError:
        budget = Budget(PARSING)
        _parsing.set(budget)
        return budget
