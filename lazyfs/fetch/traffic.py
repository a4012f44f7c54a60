"""Counts waiting readers, so that the background can give way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class Traffic:
    """Readers that wait for the network."""

    def __init__(self) -> None:
        self.waiting = 0
        self._changes = trio.lowlevel.ParkingLot()

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Count one waiting reader for as long as the block lasts."""
        self.waiting += 1
        self._changes.unpark_all()
        try:
            yield
        finally:
            self.waiting -= 1
            self._changes.unpark_all()

    async def give_way(self, urgent: Callable[[], bool]) -> None:
        """Return when no reader waits, or when `urgent()`: one waits for what the caller itself fetches."""
        while self.waiting and not urgent():
            await self._changes.park()
