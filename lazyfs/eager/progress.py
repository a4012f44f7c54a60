"""The progress of layers, reported a few times a second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from lazyfs.reports.steps import Note, Progress

_PAUSE: Final = 0.25

Notify = Callable[[Note | Progress], Awaitable[None]]


class Bars:
    """One progress bar per task. Steps may come from any thread, at any rate."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._reported: dict[str, int] = {}

    def begin(self, task: str, total: int) -> Callable[[int], None]:
        """Start a bar at 0. Returns the function that moves it, for one thread at a time."""
        self._totals[task] = total
        self._done[task] = 0

        def step(count: int) -> None:
            self._done[task] += count

        return step

    async def run(self) -> None:
        """Report progress until cancelled."""
        while True:
            await self.report()
            await trio.sleep(_PAUSE)

    async def report(self) -> None:
        """Report the bars that have moved since the last call."""
        for task, done in list(self._done.items()):
            if self._reported.get(task) != done:
                self._reported[task] = done
                await self._notify(Progress(task, done, self._totals[task]))
