"""How far layers are on their way, told a few times a second to whoever shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from lazyfs.reports.steps import Note, Progress

_PAUSE: Final = 0.25

Notify = Callable[[Note | Progress], Awaitable[None]]


class Bars:
    """One bar a task. Steps may come from any thread, at any rate."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._reported: dict[str, int] = {}

    def begin(self, task: str, total: int) -> Callable[[int], None]:
        """A bar that stands at 0. What comes back moves it, and is one thread's at a time."""
        self._totals[task] = total
        self._done[task] = 0

        def step(count: int) -> None:
            self._done[task] += count

        return step

    async def run(self) -> None:
        """Until cancelled: tell what has moved."""
        while True:
            await self.report()
            await trio.sleep(_PAUSE)

    async def report(self) -> None:
        """Tell what has moved since the last time."""
        for task, done in list(self._done.items()):
            if self._reported.get(task) != done:
                self._reported[task] = done
                await self._notify(Progress(task, done, self._totals[task]))
