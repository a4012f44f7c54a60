"""Remove from the store what no mounted image needs.

--all also removes files of mounted images (they are fetched again when they are read). --older-than removes only what arrived before that.
A file that a process has open stays readable, and takes space until it is closed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from lazyfs.cli.options import add_store, parse_age, store_of
from lazyfs.cli.progress import follow
from lazyfs.daemon.client import Client
from lazyfs.mount.table import our_mounts
from lazyfs.reports.orders import PruneOrder
from lazyfs.reports.results import PruneResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--all", action="store_true", help="also what mounted images have")
    chosen.add_argument("--older-than", metavar="AGE", help="only what arrived that long ago: 30m, 12h, 7d")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Prune, through lazyfsd if it runs or has mounts. Raises LazyfsError."""
    store = store_of(arguments)
    order = PruneOrder(arguments.all, parse_age(arguments.older_than) if arguments.older_than else 0.0)
    client = Client(store)
    if client.is_running() or any(mounted.store == store.resolve() for mounted in our_mounts()):
        freed = follow(client.call(order, start=True))  # only lazyfsd knows what its mounts need
    else:
        freed = _prune_alone(store, order)
    print(json.dumps(msgspec.to_builtins(freed)) if arguments.json else _describe(store, freed))
    return 0


def _prune_alone(directory: Path, order: PruneOrder) -> PruneResult:
    import trio

    from lazyfs.mount.upkeep import Upkeep
    from lazyfs.store.in_use import InUse
    from lazyfs.store.store import Store

    async def prune() -> PruneResult:
        with Store.open(directory) as store:
            return await Upkeep(store, InUse).prune(everything=order.everything, older_than=order.older_than)

    return trio.run(prune)


def _describe(directory: Path, freed: PruneResult) -> str:
    what = f"{freed.objects} files and {freed.documents} documents and metadata images"
    if freed.parts:
        what += f" and {freed.parts} unfinished layers"
    lines = [f"{directory}", f"  removed {what}: {freed.bytes / 1e6:.1f} MB"]
    if freed.held_bytes:
        lines.append(
            f"  of these {freed.held_bytes / 1e6:.1f} MB are still open or mounted, and take space until they are closed"
        )
    lines.append(f"  left: {freed.used_bytes / 1e6:.1f} MB")
    return "\n".join(lines)
