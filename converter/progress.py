"""Progress bars on a terminal, one per layer; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Step = Callable[[int], None]
"""Adds a number of bytes, which may be negative."""


class Progress:
    """A context manager. `shown`: whether bars are shown on stderr."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._stack = ExitStack()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._shown:
            # rich takes a tenth of a second to import: only if bars are shown.
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = self._stack.enter_context(Bars(*columns, console=Console(stderr=True)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def phase(self, layer: str, doing: str, total: int) -> Step:
        """Begin a step of `total` bytes for `layer`. The function returned may be called from any thread."""
        bars = self._bars
        if bars is None:
            return _nothing
        text = f"{layer} {doing:8}"
        task = self._tasks.get(layer)
        if task is None:
            task = self._tasks[layer] = bars.add_task(text, total=total)
        else:
            bars.reset(task, description=text, total=total)
        return lambda count: bars.advance(task, count)


def _nothing(_count: int) -> None:
    pass
