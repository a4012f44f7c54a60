"""Mount an image's root file system, read-only, before it has arrived.

Returns as soon as the mount answers. What is read is fetched at once; everything else follows in the background, and
when all is here neither the registry nor the network is needed any more. The image must have been converted
(lazyfs convert).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lazyfs.cli.options import access_of, add_image, add_store, platform_of, reference_of, store_of
from lazyfs.errors import LazyfsError, MountFailed
from lazyfs.mount.daemon import Report, Reporter, died, fork_daemon
from lazyfs.mount.table import absolute, find_mount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("directory", metavar="DIR", type=Path, help="where; it must exist")
    parser.add_argument(
        "--background",
        choices=("on", "off", "wait"),
        default="on",
        help="fetch what nobody reads as well: on (default), off, or wait until everything is here",
    )
    parser.add_argument("--foreground", action="store_true", help="stay, and log to the terminal; Ctrl-C unmounts")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="say what was mounted as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Mount. Raises LazyfsError."""
    directory = absolute(arguments.directory)
    if find_mount(directory):  # asked first: a mount whose process has died fails whoever touches it
        raise MountFailed(f"{directory} is a lazyfs mount already", hint=f"Take it away first: lazyfs umount {directory}")
    if not directory.is_dir():
        raise MountFailed(f"{directory} is no directory", hint="Make it first")
    directory = directory.resolve()  # the name under which the kernel will list the mount
    reference, access, platform, store = (
        reference_of(arguments),
        access_of(arguments),
        platform_of(arguments),
        store_of(arguments),
    )

    _check_not_hidden(directory, "the store", store)
    if reference.transport == "oci":
        _check_not_hidden(directory, "the image", Path(reference.location))

    def serve(reporter: Reporter) -> None:
        # Imported in the child alone: the parent only waits.
        from lazyfs.mount.logs import log_to_file, log_to_terminal
        from lazyfs.mount.portable import MountRequest
        from lazyfs.mount.portable import serve as serve_portable

        if arguments.foreground:
            log_to_terminal()
        else:
            log_to_file(store, directory)
        serve_portable(MountRequest(reference, directory, store, platform, access, arguments.background), reporter)

    if arguments.foreground:
        serve(Reporter(None))
        return 0
    pid, reports = fork_daemon(serve)
    try:
        return _follow(pid, reports, directory, arguments)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise


def _follow(pid: int, reports: Iterator[Report], directory: Path, arguments: argparse.Namespace) -> int:
    first = next(reports, None)
    if first is None:
        raise died(pid)
    _raise_error(first)
    os.statvfs(directory)  # returns when the mount answers
    if arguments.json:
        print(json.dumps({"image": first["image"], "directory": str(directory), "pid": pid}), flush=True)
    if arguments.background == "wait":
        _show_progress(reports, directory)
    return 0


def _show_progress(reports: Iterator[Report], directory: Path) -> None:
    """Until everything is here. Raises what the mount's process tells, MountFailed when it ends before that."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("fetching", total=None)
        trouble = ""
        for report in reports:
            _raise_error(report)
            progress.update(task, total=report["total"], completed=report["total"] - report["left"])
            if report["trouble"] and report["trouble"] != trouble:
                trouble = report["trouble"]
                print(f"lazyfs: {trouble}; trying again", file=sys.stderr)
            if report.get("done"):
                return
    raise MountFailed(
        f"the mount at {directory} has ended before everything was here", hint="What has arrived is kept: mount it again"
    )


def _check_not_hidden(directory: Path, what: str, path: Path) -> None:
    """The mount's process would look for its own files inside of its own mount."""
    if path.resolve().is_relative_to(directory):
        raise MountFailed(f"{directory} holds {what} ({path}), which the mount would hide", hint="Mount it at another directory")


def _raise_error(report: dict[str, Any]) -> None:
    if "error" in report:
        error = LazyfsError(report["error"])
        error.exit_code = report["code"]  # type: ignore[misc]  # the child's class, seen from here
        raise error
