"""Show what is mounted, and what of it has arrived.

Without DIR: all mounts that this user can see, native and portable, and, if lazyfsd serves a containerd, what it has. A complete
mount needs neither registry nor network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lazyfs.cli.options import add_store, store_of
from lazyfs.cli.output import megabytes
from lazyfs.cli.progress import follow
from lazyfs.cli.service_status import describe_service, failed_tasks
from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.errors import LazyfsError, MountFailed
from lazyfs.mount.status import ask_status
from lazyfs.mount.table import LazyfsMount, find_mount, our_mounts
from lazyfs.reports.orders import StatusOrder
from lazyfs.reports.status import MountStatus, ServiceStatus

_NO_MOUNT = "/"
"""No image is mounted at `/`: a status of it has no mounts, which is cheap."""
_SERVICE = ("containerds", "repositories", "gate", "store", "failures", "pid")
"""What `--json` shows of lazyfsd, in this order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", help="one mount only")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a mount, one a line; sizes in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Ask and print. Exit code 5 when a mount does not answer. Raises MountFailed for a DIR that is not a mount."""
    if arguments.directory is None:
        mounts = our_mounts()
    else:
        mounted = find_mount(arguments.directory)
        if mounted is None:
            raise MountFailed(f"{arguments.directory} is not a lazyfs mount", hint="`lazyfs status` lists the mounts")
        mounts = [mounted]
    silent = 0
    for mounted, answer in _ask(mounts, store_of(arguments)):
        if arguments.directory is None and not isinstance(answer, MountStatus) and find_mount(mounted.path) is None:
            continue  # it was unmounted after it was listed
        if isinstance(answer, MountStatus):
            print(msgspec.json.encode(answer).decode() if arguments.json else _describe(answer))
            continue
        silent += 1
        if arguments.json:
            print(json.dumps({"directory": str(mounted.path), "image": mounted.image, "error": str(answer)}))
        else:
            print(answer)
    served = _ask_for_containerds(store_of(arguments)) if arguments.directory is None else None
    if served and arguments.json:
        print(json.dumps({name: msgspec.to_builtins(getattr(served, name)) for name in _SERVICE}))
    elif served:
        print("\n".join(describe_service(served)))
    if not mounts and not served and not arguments.json:
        print("nothing is mounted")
    return MountFailed.exit_code if silent else 0


def _ask(mounts: list[LazyfsMount], store: Path) -> Iterator[tuple[LazyfsMount, MountStatus | LazyfsError]]:
    for mounted in mounts:
        try:
            yield mounted, _ask_daemon(mounted, store) if mounted.mode == "native" else ask_status(mounted.path)
        except LazyfsError as error:
            yield mounted, error


def _ask_daemon(mounted: LazyfsMount, store: Path) -> MountStatus:
    """Raises LazyfsError if there is no lazyfsd, or it does not know the mount."""
    answer = follow(Client(mounted.store or store).call(StatusOrder(str(mounted.path)), start=True))
    if not answer.mounts:
        raise MountFailed(
            f"the mount at {mounted.path} is not a mount of the lazyfsd that serves {mounted.store or store}",
            hint="Files that have arrived work. Name its --store, or unmount it",
        )
    return answer.mounts[-1]


def _ask_for_containerds(store: Path) -> ServiceStatus | None:
    """The status of lazyfsd; None if it does not run, or serves no containerd."""
    try:
        answer = follow(Client(store).call(StatusOrder(_NO_MOUNT), start=False))
    except DaemonUnreachable:
        return None
    return answer if answer.containerds else None


def _describe(status: MountStatus) -> str:
    if status.complete:
        state = "complete: needs no registry"
    else:
        share = f" of {megabytes(status.total_bytes)}" if status.total_bytes else ""
        state = (
            f"{megabytes(status.missing_bytes)}{share} in {status.missing_chunks} chunks missing (background {status.background})"
        )
    lines = [
        f"{status.directory}  {status.image}",
        f"  {status.mode}{f', changes go to {status.upper}' if status.upper else ''}; {state}",
        f"  {_fetched(status)}  (process {status.pid}, store {status.store})",
    ]
    lines += [
        f"  layer {layer.digest} ({megabytes(layer.size)}) was fetched whole: {layer.reason}"
        for layer in status.layer_states
        if layer.reason
    ]
    if status.mode == "native":
        lines.append(
            f"  misses: {status.published} put in place, {status.entries} served through the gate in {status.reads} reads"
        )
    if status.errors or status.damaged or status.unkept:
        errors = ", ".join(f"{count} {name}" for name, count in sorted(status.errors.items())) or "none"
        lines.append(f"  errors: {errors}; damaged in the store: {status.damaged}; not stored: {status.unkept}")
    if failures := failed_tasks(status.failures):
        lines.append(f"  {failures}")
    if status.trouble:
        lines.append(f"  {status.trouble}")
    return "\n".join(lines)


def _fetched(status: MountStatus) -> str:
    """How much of the layers was fetched, and how. Layers that were fetched whole before the mount are counted separately."""
    whole = [layer.size for layer in status.layer_states if layer.reason]
    texts = []
    if not whole or len(whole) < len(status.layer_states) or status.requests:
        lazily = f"{megabytes(status.received_bytes)} of {megabytes(status.layer_bytes - sum(whole))}"
        texts.append(f"fetched {lazily} in {status.requests} requests")
    if whole:
        texts.append(f"{megabytes(sum(whole))} of layers fetched whole")
    return ", ".join(texts)
