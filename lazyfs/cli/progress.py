"""What a mount's process reports on its way, for a person's eyes: lines, and bars where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from lazyfs.daemon.orders import Report

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display(AbstractContextManager["Display"]):
    """Shows reports. rich is imported when there is a bar to show: not on the way of a container's start."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._trouble = ""

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, report: Report) -> None:
        """What of it is for a person's eyes."""
        if "note" in report:
            print(f"lazyfs: {report['note']}", file=sys.stderr)
        if report.get("trouble") and report["trouble"] != self._trouble:
            self._trouble = report["trouble"]
            print(f"lazyfs: {self._trouble}; trying again", file=sys.stderr)
        if "task" in report and sys.stderr.isatty():
            self._bars = self._bars or self._stack.enter_context(_bars())
            name = report["task"]
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name)
            self._bars.update(self._tasks[name], total=report["total"], completed=report["done_bytes"])


def follow(reports: Iterator[Report], until: str = "done") -> Report:
    """Show all reports up to the one that has `until`, which is returned; an empty one if they end before that.
    Raises what `reports` raises.
    """
    with Display() as display:
        for report in reports:
            if report.get(until):
                return report
            display.show(report)
    return {}


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))
