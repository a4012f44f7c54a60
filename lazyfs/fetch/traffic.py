"""Who waits, so that the background can give way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class Traffic:
    """Counts the readers that wait for the network."""

    def __init__(self) -> None:
        self.waiting = 0
        self._changes = trio.lowlevel.ParkingLot()

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Around the wait of one reader."""
        self.waiting += 1
        self._changes.unpark_all()
        try:
            yield
        finally:
            self.waiting -= 1
            self._changes.unpark_all()

    async def give_way(self, urgent: Callable[[], bool]) -> None:
        """Return when nobody waits, or when `urgent()`: somebody waits for what the caller itself brings."""
        while self.waiting and not urgent():
            await self._changes.park()
