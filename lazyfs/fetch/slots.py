"""Turns: so many runs of a kind are on their way at once, the others wait in order."""

from __future__ import annotations

import trio

from lazyfs.fetch.progress import Progress


class Slots:
    """A semaphore that knows whose bytes the runs that wait are waiting for."""

    def __init__(self, count: int) -> None:
        self._free = trio.Semaphore(count)
        self._under_way: set[Progress] = set()
        self._before = 0
        """Bytes of runs that have ended."""

    def received(self) -> int:
        """Bytes of all runs that have had their turn. Costs a look at each that is under way."""
        return self._before + sum(progress.received for progress in self._under_way)

    def try_acquire(self, progress: Progress) -> bool:
        """Take a slot if one is free. To await one costs a turn of the event loop even then."""
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            return False
        self._under_way.add(progress)
        return True

    async def acquire(self, progress: Progress) -> None:
        """Take a slot, in order. Cancelled: none is taken."""
        progress.ahead = self.received
        try:
            await self._free.acquire()
        finally:
            progress.ahead = None
        self._under_way.add(progress)

    def has(self, progress: Progress) -> bool:
        """Whether this run has one of them."""
        return progress in self._under_way

    def release(self, progress: Progress) -> None:
        """Give the slot back, if this run has one."""
        if progress in self._under_way:
            self._under_way.remove(progress)
            self._before += progress.received
            self._free.release()
