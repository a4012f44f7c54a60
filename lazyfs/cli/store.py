"""Look after what has been kept on this machine: every chunk that arrived, once, for all images.

info    what is there, and how much
check   read everything, drop what is damaged (it is fetched again when it is needed), remove what a crash left
clear   remove everything; refused while something is mounted from it
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from lazyfs.cli.options import add_store, store_of
from lazyfs.store.check import CheckReport, check, clear
from lazyfs.store.statistics import StoreStatistics
from lazyfs.store.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("action", choices=("info", "check", "clear"))
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Do it. `check` ends with 3 when something was damaged. Raises StoreUnusable."""
    directory = store_of(arguments)
    if arguments.action == "clear":
        clear(directory)
        return 0
    with Store.open(directory) as store:
        report: StoreStatistics | CheckReport = store.statistics() if arguments.action == "info" else _check(store)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        print(_describe(directory, report))
    damaged = isinstance(report, CheckReport) and (report.damaged_chunks or report.damaged_documents or report.index_rebuilt)
    return 3 if damaged else 0


def _check(store: Store) -> CheckReport:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("checking"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("checking", total=None)
        return check(store, lambda done, total: progress.update(task, completed=done, total=total))


def _describe(directory: Path, report: StoreStatistics | CheckReport) -> str:
    if isinstance(report, StoreStatistics):
        return (
            f"{directory}\n"
            f"  {report.objects} files whole ({report.object_bytes / 1e6:.1f} MB),"
            f" {report.partial} under way ({report.partial_bytes / 1e6:.1f} MB),"
            f" {report.documents} manifests, configs and TOCs ({report.document_bytes / 1e6:.1f} MB)"
        )
    lines = [
        f"{directory}",
        f"  read {report.chunks} chunks ({report.bytes / 1e6:.1f} MB) and {report.documents} documents",
        f"  damaged and dropped: {report.damaged_chunks} chunks, {report.damaged_documents} documents",
        f"  left by a crash and removed: {report.leftovers} files ({report.leftover_bytes / 1e6:.1f} MB)",
    ]
    if report.in_use:
        lines[-1] = "  in use by another process: what a crash may have left was not looked for"
    if report.index_rebuilt:
        lines.append("  the index was damaged: the store starts empty")
    return "\n".join(lines)
