"""Say what is mounted, and what of it is here.

Without DIR: all mounts that this user can see. A complete mount needs neither registry nor network any more.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from lazyfs.errors import MountFailed
from lazyfs.mount.status import MountStatus, ask_status
from lazyfs.mount.table import find_mount, our_mounts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", help="one mount only")
    parser.add_argument("--json", action="store_true", help="one JSON object a mount, one a line; sizes in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Ask and print. Exit code 5 when a mount does not answer. Raises MountFailed for a DIR that is no mount."""
    if arguments.directory is not None and find_mount(arguments.directory) is None:
        raise MountFailed(f"{arguments.directory} is no lazyfs mount", hint="`lazyfs status` lists those there are")
    mounts = (
        our_mounts() if arguments.directory is None else [mounted for mounted in [find_mount(arguments.directory)] if mounted]
    )
    silent = 0
    for mounted in mounts:
        try:
            status = ask_status(mounted.path)
        except MountFailed as error:
            silent += 1
            print(
                json.dumps({"directory": str(mounted.path), "image": mounted.image, "error": str(error)})
                if arguments.json
                else f"{error}"
            )
        else:
            print(msgspec.json.encode(status).decode() if arguments.json else _describe(status))
    if not mounts and not arguments.json:
        print("nothing is mounted")
    return MountFailed.exit_code if silent else 0


def _describe(status: MountStatus) -> str:
    if status.complete:
        state = "complete: needs no registry"
    else:
        state = f"{_mb(status.missing_bytes)} in {status.missing_chunks} chunks missing (background {status.background})"
    lines = [
        f"{status.directory}  {status.image}",
        f"  {state}",
        f"  fetched {_mb(status.received_bytes)} of {_mb(status.layer_bytes)} in {status.requests} requests  (process {status.pid}, store {status.store})",
    ]
    if status.errors or status.damaged or status.unkept:
        errors = ", ".join(f"{count} {name}" for name, count in sorted(status.errors.items())) or "none"
        lines.append(f"  errors: {errors}; damaged in the store: {status.damaged}; not kept: {status.unkept}")
    if status.trouble:
        lines.append(f"  {status.trouble}")
    return "\n".join(lines)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
