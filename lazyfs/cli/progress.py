"""What is reported on the way to a result, for a person's eyes: lines, and bars where there is a terminal."""

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
    """Shows reports. rich is imported when there is a bar to show: not on the way of a container's start."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._trouble = ""

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, step: Step) -> None:
        """What of it is for a person's eyes."""
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
    """Show all steps up to the result, which is returned. Raises what `reports` raises, and `if_ended` if they end without a result."""
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
