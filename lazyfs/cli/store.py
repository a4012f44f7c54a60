"""Inspect, check or clear the store: every chunk that arrived, once, for all images.

info    what is in it, its size, and its bound
check   read everything, drop what is damaged (it is fetched again when needed), remove what a crash left
clear   remove everything; refused while something is mounted from it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from lazyfs.cli.options import add_store, store_of
from lazyfs.cli.progress import follow
from lazyfs.daemon.client import Client
from lazyfs.errors import LazyfsError
from lazyfs.reports.orders import StatusOrder
from lazyfs.reports.status import StoreStatus
from lazyfs.store.check import CheckReport, check, clear
from lazyfs.store.eviction import Usage
from lazyfs.store.statistics import StoreStatistics
from lazyfs.store.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("action", choices=("info", "check", "clear"))
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Run the action. `check` exits with 3 if something was damaged. Raises StoreUnusable."""
    directory = store_of(arguments)
    if arguments.action == "clear":
        clear(directory)
        return 0
    with Store.open(directory) as store:
        if arguments.action == "check":
            report = _check(store)
            print(msgspec.json.encode(report).decode() if arguments.json else _describe_check(directory, report))
            return 3 if report.damaged_chunks or report.damaged_documents or report.index_rebuilt else 0
        info = _Info(store.statistics(), store.eviction.usage(), not store.durability.is_pending(), _ask_lazyfsd(directory))
    print(json.dumps(info.as_json()) if arguments.json else info.describe(directory))
    return 0


class _Info(NamedTuple):
    counted: StoreStatistics
    usage: Usage
    durable: bool
    lazyfsd: StoreStatus | None
    """From lazyfsd, if it runs: what the kernel still holds, what was evicted and scrubbed."""

    def as_json(self) -> dict[str, object]:
        room = {"used_bytes": self.usage.used, "limit_bytes": self.usage.limit, "durable": self.durable}
        lazyfsd = msgspec.to_builtins(self.lazyfsd) if self.lazyfsd else {}
        return {**msgspec.to_builtins(self.counted), **room, **lazyfsd}

    def describe(self, directory: Path) -> str:
        counted, lazyfsd = self.counted, self.lazyfsd
        whole = f"{counted.objects} files whole ({counted.object_bytes / 1e6:.1f} MB)"
        under_way = f"{counted.partial} under way ({counted.partial_bytes / 1e6:.1f} MB)"
        documents = f"{counted.documents} manifests, configs and TOCs ({counted.document_bytes / 1e6:.1f} MB)"
        used = f"{(lazyfsd.used_bytes if lazyfsd else self.usage.used) / 1e6:.1f} MB on disk"
        limit = f", of {self.usage.limit / 1e6:.1f} MB that it may take" if self.usage.limit else ""
        durable = "all of it is safe from a power cut" if self.durable else "the latest is not yet safe from a power cut"
        lines = [f"{directory}", f"  {whole}, {under_way}, {documents}", f"  {used}{limit}; {durable}"]
        if lazyfsd and lazyfsd.held_bytes:
            lines.append(f"  {lazyfsd.held_bytes / 1e6:.1f} MB of that are of removed files, still open or mounted")
        if lazyfsd and lazyfsd.evicted_objects:
            lines.append(
                f"  {lazyfsd.evicted_objects} files ({lazyfsd.evicted_bytes / 1e6:.1f} MB) evicted since lazyfsd started"
            )
        return "\n".join(lines)


def _ask_lazyfsd(directory: Path) -> StoreStatus | None:
    client = Client(directory)
    if not client.is_running():
        return None
    try:
        return follow(client.call(StatusOrder(), start=False)).store
    except LazyfsError:
        return None  # it has just stopped


def _check(store: Store) -> CheckReport:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("checking"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("checking", total=None)
        return check(store, lambda done, total: progress.update(task, completed=done, total=total))


def _describe_check(directory: Path, report: CheckReport) -> str:
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
