"""Counts the users of something, and waits until it has been without one for a while.

Used by everything that lingers: layers, sources, images, and lazyfsd itself, whose users are its mounts and orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

LINGER: Final = 30.0
"""Seconds for which an unused layer, source or image stays: the next container is most likely one of the same image."""


class Uses:
    """A count of users. Every change wakes the waiters, so that a user that comes and goes meanwhile is noticed."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = trio.Event()

    def change(self, by: int) -> None:
        """Add or remove a user."""
        self.count += by
        self._changed.set()
        self._changed = trio.Event()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count one use for as long as the block lasts."""
        self.change(+1)
        try:
            yield
        finally:
            self.change(-1)

    async def wait_until_unused(self, linger: Callable[[], float] = lambda: LINGER) -> None:
        """Wait until there was no user for `linger()` seconds, which is called each time the last user leaves."""
        while True:
            while self.count:
                await self._changed.wait()
            with trio.move_on_after(linger()) as lingering:
                await self._changed.wait()  # also by a user that has come and gone: the time starts again
            if lingering.cancelled_caught and not self.count:
                return
