"""What a mount's process reports on its way, for a person's eyes: lines, and bars where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lazyfs.daemon.orders import Report

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def follow(reports: Iterator[Report], until: str = "done") -> Report:
    """Show all reports up to the one that has `until`, which is returned; an empty one if they end before that.
    Raises what `reports` raises.

    rich is imported when there is a bar to show: not on the way of a container's start.
    """
    trouble = ""
    with ExitStack() as stack:
        bars: Progress | None = None
        tasks: dict[str, TaskID] = {}
        for report in reports:
            if report.get(until):
                return report
            if "note" in report:
                print(f"lazyfs: {report['note']}", file=sys.stderr)
            if report.get("trouble") and report["trouble"] != trouble:
                trouble = report["trouble"]
                print(f"lazyfs: {trouble}; trying again", file=sys.stderr)
            if "task" in report and sys.stderr.isatty():
                bars = bars or stack.enter_context(_bars())
                name = report["task"]
                if name not in tasks:
                    tasks[name] = bars.add_task(name)
                bars.update(tasks[name], total=report["total"], completed=report["done_bytes"])
    return {}


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))
