"""Run a command in a container of an image, before the image has arrived.

The image's root file system is mounted natively, with a writable layer that is removed at the end. runc runs what the image's
config says: entrypoint and command, environment, user, working directory. CMD replaces the image's own command. Standard input,
signals and the exit code are the program's. It has a terminal if standard input and output are one.

exit codes:
  that of the program; 128 + N where signal N ended it
  2 wrong command line   125 lazyfs or runc failed   126 the command cannot be executed   127 there is no such command
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from lazyfs.bundle.bundle import ROOT, write_bundle
from lazyfs.bundle.runc import NOT_RUN, require_runc, run_bundle
from lazyfs.bundle.settings import read_settings
from lazyfs.bundle.signals import Stopped, hold_signals, stop_on_signals
from lazyfs.cli.options import access_of, add_image, add_store, platform_of, reference_of, store_of
from lazyfs.cli.progress import follow
from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.daemon.containers import container_folder
from lazyfs.errors import LazyfsError, LocalError, UsageError
from lazyfs.kernel.mountinfo import mounted_at
from lazyfs.kernel.removal import remove_tree
from lazyfs.reports.orders import MountOrder, UnmountOrder
from lazyfs.reports.wire import Refused

_UPPER = "upper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="and its arguments (default: the image's)")
    parser.add_argument("-t", "--tty", action="store_true", help="a terminal, also where standard output is none")
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="changes nothing: standard input is the program's anyway"
    )
    parser.add_argument(
        "-e", "--env", metavar="NAME[=VALUE]", action="append", default=[], help="set a variable; without VALUE pass ours on"
    )
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", default="", help="names of the image, or numbers")
    parser.add_argument("-w", "--workdir", metavar="DIR", default="", help="in the image; made where it is missing")
    parser.add_argument(
        "--net", choices=("none", "host"), default="none", help="loopback only (default), or this machine's network"
    )
    parser.add_argument(
        "--allow-new-privileges",
        action="store_true",
        help="let setuid programs (sudo) and file capabilities grant privileges, as Docker does. Default: they grant none, because"
        " an unchecked image could make any of its users root",
    )
    parser.add_argument(
        "--background", choices=("on", "off"), default="on", help="fetch what the program does not read as well (default: on)"
    )
    parser.add_argument(
        "--lazy-only", action="store_true", help="refuse an image with a layer that is not lazy, instead of fetching it whole"
    )
    parser.add_argument(
        "--record",
        metavar="FILE",
        type=Path,
        help="at the end, write the files in the order of their first use (for convert --prioritize)",
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        type=Path,
        help="run nothing: leave the bundle, mounted and ready for runc, in the new directory DIR",
    )
    add_store(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run. Raises LazyfsError; except for usage errors, its exit code is 125, as in docker(1) and chroot(1)."""
    try:
        with hold_signals() as mask:
            return _make_bundle(arguments) if arguments.bundle else _run(arguments, mask)
    except Stopped as stopped:
        return 128 + stopped.number
    except UsageError:
        raise
    except LazyfsError as error:
        error.exit_code = NOT_RUN  # type: ignore[misc]  # other codes would be taken for the program's
        raise


def _run(arguments: argparse.Namespace, mask: frozenset[int]) -> int:
    _check(arguments)
    require_runc()
    client = Client(store_of(arguments))
    with container_folder(store_of(arguments)) as folder, ExitStack() as stack:
        stack.callback(_unmount, client, folder.path / ROOT)
        with stop_on_signals():
            _prepare(arguments, client, folder.path)
        return run_bundle(folder.path, folder.path.name, mask, folder.hold)


def _make_bundle(arguments: argparse.Namespace) -> int:
    _check(arguments)
    client = Client(store_of(arguments))
    directory = Path(os.path.realpath(arguments.bundle))  # the path that the mount table will have
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise LocalError(f"cannot make {directory}: {error.strerror}", hint="Name a directory that is not there yet") from error
    with ExitStack() as undo:
        undo.callback(_remove, directory)
        undo.callback(_unmount, client, directory / ROOT)
        with stop_on_signals():
            _prepare(arguments, client, directory)
        undo.pop_all()
    print(f"runc run --bundle {directory} NAME; at last: lazyfs umount {directory / ROOT}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Checks that need no lazyfsd. Raises UsageError, LocalError."""
    if os.geteuid() != 0:
        raise LocalError("only root can run containers", hint="lazyfs mount --mode portable is for every user")
    if arguments.tty and not os.isatty(0):
        raise UsageError("--tty: standard input is not a terminal")
    if arguments.record and not arguments.record.absolute().parent.is_dir():
        raise UsageError(f"--record: {arguments.record.absolute().parent} is not a directory")


def _prepare(arguments: argparse.Namespace, client: Client, folder: Path) -> None:
    """Make the bundle in `folder`: mount the image, write config.json. Raises LazyfsError; the mount may exist then."""
    root, upper = folder / ROOT, folder / _UPPER
    root.mkdir(mode=0o755)
    upper.mkdir(mode=0o755)
    order = MountOrder(
        ticket=os.urandom(16).hex(),
        reference=str(reference_of(arguments)),
        directory=str(root),
        platform=str(platform_of(arguments)),
        plain_http=access_of(arguments).plain_http,
        creds=arguments.creds or "",
        background=arguments.background,
        upper=str(upper),
        volatile=not arguments.bundle,
        record=str(arguments.record.absolute()) if arguments.record else "",
        lazy_only=arguments.lazy_only,
    )
    config = follow(client.call(order, start=True)).config
    # As in Docker: an unset variable is not passed on.
    env = [text if "=" in text else f"{text}={os.environ[text]}" for text in arguments.env if "=" in text or text in os.environ]
    settings = read_settings(config, arguments.command, env=env, user=arguments.user, workdir=arguments.workdir)
    terminal = os.get_terminal_size(0) if arguments.tty or (os.isatty(0) and os.isatty(1)) else None
    write_bundle(
        folder,
        settings,
        hostname=folder.name,
        net=arguments.net,
        terminal=terminal,
        new_privileges=arguments.allow_new_privileges,
    )


def _unmount(client: Client, root: Path) -> None:
    """Unmount `root`, if it is mounted. Afterwards its recording is written."""
    if mounted_at(root) is None:
        return
    try:
        try:
            follow(client.call(UnmountOrder(str(root)), start=False))
        except Refused:
            # The container has ended, but another process uses its root file system: detach it.
            follow(client.call(UnmountOrder(str(root), lazy=True), start=False))
    except DaemonUnreachable:
        from lazyfs.mount.unmount import unmount

        unmount(root, lazy=True)


def _remove(directory: Path) -> None:
    with suppress(OSError):
        remove_tree(directory)
