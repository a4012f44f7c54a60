"""`python -m bench [NAME…]`: measure, record, show. Exit code 0 when every bar holds, 1 when one is missed."""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from rich.console import Console

from bench import (
    chunks,
    convert,
    crowd,
    hostile,
    late,
    memory,
    metadata,
    mount_time,
    native,
    pull,
    ranges,
    read,
    run,
    service_memory,
    start,
    torch,
    whole,
)
from bench.figure import Figure
from bench.machine import QUIET, facts, load
from bench.place import Place, open_place
from bench.table import table
from tests.images.build import BuildFailed

RESULTS = Path(__file__).parent / "results"
MEASUREMENTS: dict[str, Callable[[Place], list[Figure]]] = {
    "convert": convert.measure,
    "mount_time": mount_time.measure,
    "read": read.measure,
    "ranges": ranges.measure,
    "chunks": chunks.measure,
    "metadata": metadata.measure,
    "native": native.measure,
    "run": run.measure,
    "late": late.measure,
    "whole": whole.measure,
    "pull": pull.measure,
    "start": start.measure,
    "crowd": crowd.measure,
    "service_memory": service_memory.measure,
    "hostile": hostile.measure,
    "memory": memory.measure,
    "torch": torch.measure,
    "pull_torch": pull.measure_torch,
}
ON_DISK = {
    "metadata",
    "native",
    "run",
    "late",
    "whole",
    "torch",
    "pull",
    "start",
    "crowd",
    "service_memory",
    "pull_torch",
    "chunks",
}
"""What overlayfs and native mounts are to be compared on lies on a disk."""
ONLY_BY_NAME = {"hostile", "memory", "torch", "start", "crowd", "service_memory", "pull_torch", "chunks"}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(MEASUREMENTS)}; where none is named, all but {', '.join(sorted(ONLY_BY_NAME))}",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="where the record goes (results/DATE[-NAME…].jsonl)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - MEASUREMENTS.keys():
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    names = arguments.names or [name for name in MEASUREMENTS if name not in ONLY_BY_NAME]
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    record = arguments.record or RESULTS / ("-".join([today, *arguments.names]) + ".jsonl")
    console = Console(stderr=True)
    if load() > QUIET:
        console.print(
            f"The load average is {load():.1f}: other processes use this machine and will affect the figures.", style="yellow"
        )
    figures: list[tuple[str, Figure]] = []
    lines: list[dict[str, Any]] = [facts()]
    for on_disk, here in ((False, MEASUREMENTS.keys() - ON_DISK), (True, ON_DISK)):
        wanted = [name for name in names if name in here]
        if not wanted:
            continue
        with open_place(lambda text: console.print(text, style="dim", highlight=False), on_disk=on_disk) as place:
            for name in wanted:
                try:
                    measured = MEASUREMENTS[name](place)
                except BuildFailed as error:
                    raise SystemExit(str(error)) from None
                figures += [(name, figure) for figure in measured]
                lines += [figure.record(name) for figure in measured]
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    Console(width=None if sys.stdout.isatty() else 160).print(table(figures))
    console.print(f"Recorded in {record}", style="dim", highlight=False)
    return 1 if any(figure.ok is False for _, figure in figures) else 0


def _stop(number: int, _frame: object) -> NoReturn:
    """As Ctrl-C: whatever was begun is ended on the way out."""
    sys.exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
