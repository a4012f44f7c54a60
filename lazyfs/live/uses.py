"""How many users something has, and when it has been without one for long enough to end.

One class for all that lingers: layers and repositories, images, and lazyfsd itself, whose users are its mounts and its orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

LINGER: Final = 30.0
"""Seconds for which an unused layer, repository or image stays: the next container of the image is the most probable one."""


class Uses:
    """A count of users. Every change is announced, in both directions: who waits for the end sees a user that comes while he waits."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = trio.Event()

    def change(self, by: int) -> None:
        """One more, or one less."""
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
        """Until there has been no user for `linger()` seconds, which is asked each time when the last one has left."""
        while True:
            while self.count:
                await self._changed.wait()
            with trio.move_on_after(linger()) as patience:
                await self._changed.wait()  # also by one who has come and left since: the linger begins again
            if patience.cancelled_caught and not self.count:
                return
