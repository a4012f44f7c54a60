"""Slots: a limited number of runs of a kind are active; the others wait in order."""

from __future__ import annotations

import trio

from lazyfs.fetch.progress import Progress


class Slots:
    """A semaphore that knows the progress of the runs that others wait for."""

    def __init__(self, count: int) -> None:
        self._free = trio.Semaphore(count)
        self._under_way: set[Progress] = set()
        self._before = 0
        """Bytes of runs that have ended."""

    def received(self) -> int:
        """Bytes of all runs that have had a slot. Looks at each active run."""
        return self._before + sum(progress.received for progress in self._under_way)

    def try_acquire(self, progress: Progress) -> bool:
        """Take a slot if one is free. Awaiting `acquire` would cost a pass of the event loop even then."""
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
        """Whether this run has a slot."""
        return progress in self._under_way

    def release(self, progress: Progress) -> None:
        """Release the slot, if this run has one."""
        if progress in self._under_way:
            self._under_way.remove(progress)
            self._before += progress.received
            self._free.release()
