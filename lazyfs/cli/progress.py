"""Shows the steps of an order: lines, and progress bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, TypeVar

from lazyfs.errors import LazyfsError
from lazyfs.reports.steps import Accepted, Note, Progress, Step

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

R = TypeVar("R")


class Display(AbstractContextManager["Display"]):
    """Shows steps. rich is imported for the first bar only, because it would delay the start of a container."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._trouble = ""

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, step: Step) -> None:
        """Show one step."""
        match step:
            case Note():
                print(f"lazyfs: {step.note}", file=sys.stderr)
            case Progress():
                self._show_trouble(step.trouble)
                if sys.stderr.isatty():
                    self._show_bar(step)
            case Accepted():
                pass

    def _show_trouble(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._trouble = trouble
            print(f"lazyfs: {trouble}; trying again", file=sys.stderr)

    def _show_bar(self, step: Progress) -> None:
        self._bars = self._bars or self._stack.enter_context(_bars())
        if step.task not in self._tasks:
            self._tasks[step.task] = self._bars.add_task(step.task)
        self._bars.update(self._tasks[step.task], total=step.total, completed=step.done_bytes)


def follow(reports: Iterator[Step | R], if_ended: Callable[[], LazyfsError] | None = None) -> R:
    """Show all steps and return the result. Raises what `reports` raises, and `if_ended` if they end without a result."""
    with Display() as display:
        for report in reports:
            if not isinstance(report, Step):
                return report
            display.show(report)
    raise if_ended() if if_ended else AssertionError("reports end with a result or an error")


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))
