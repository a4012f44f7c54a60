"""Unmount an image.

A mount that is in use is left alone, and the processes that use it are named. --lazy detaches it: it disappears at once, and its
process exits with its last user.

--abort is the way out if lazyfsd cannot start: it removes all its mounts, roots of containers included. Stop the service first.
Processes that wait for a missing file get an error; nothing on disk is lost.
"""

from __future__ import annotations

import argparse
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.cli.options import add_store, store_of
from lazyfs.cli.progress import follow
from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.errors import UsageError
from lazyfs.mount.abort import abort
from lazyfs.mount.table import LazyfsMount, find_mount
from lazyfs.mount.unmount import unmount
from lazyfs.reports.orders import UnmountOrder

_END_DEADLINE: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", help="where it is mounted")
    parser.add_argument("--abort", action="store_true", help="give up all mounts of the store's lazyfsd")
    parser.add_argument("--lazy", action="store_true", help="detach a mount that is in use")
    add_store(parser)


def run(arguments: argparse.Namespace) -> int:
    """Unmount. Raises LazyfsError."""
    if arguments.abort:
        if arguments.directory is not None:
            raise UsageError("--abort gives up all mounts of a store, and takes no DIR", hint="--store says which store")
        given_up = abort(store_of(arguments))
        for path in given_up:
            print(f"detached {path}")
        if not given_up:
            print(f"lazyfsd has nothing mounted from {store_of(arguments)}")
        return 0
    if arguments.directory is None:
        raise UsageError("umount needs the DIR to unmount")
    mounted = find_mount(arguments.directory)
    if mounted is None or mounted.mode == "portable":
        unmount(arguments.directory, lazy=arguments.lazy)
    else:
        _unmount_natively(mounted, store_of(arguments), lazy=arguments.lazy)
    return 0


def _unmount_natively(mounted: LazyfsMount, store: Path, *, lazy: bool) -> None:
    try:
        answer = follow(Client(mounted.store or store).call(UnmountOrder(str(mounted.path), lazy), start=False))
    except DaemonUnreachable:
        unmount(mounted.path, lazy=lazy)  # its lazyfsd is gone, or serves another store, and then gets the unmount event
        return
    if answer.ending:
        # With its last mount lazyfsd exits. Wait for that, so that `store clear` can follow.
        with suppress(ProcessLookupError):
            keeper = os.pidfd_open(answer.ending)
            select.select([keeper], [], [], _END_DEADLINE)
            os.close(keeper)
