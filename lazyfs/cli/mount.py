"""Mount an image's root file system before it has arrived.

The command returns as soon as the mount works. What programs read is fetched at once; the rest follows in the background. A complete
image needs neither registry nor network.

natively (root): the kernel serves metadata and every file that has arrived, at the speed of a full pull; one lazyfsd fetches
what is missing, for all such mounts. portably (any user, any kernel): one process serves the mount through FUSE. `--mode auto` tries a
native mount, and says what it chose.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lazyfs.cli.options import access_of, add_image, add_store, add_store_size, platform_of, reference_of, store_of, store_size_of
from lazyfs.cli.progress import follow
from lazyfs.daemon.client import Client
from lazyfs.errors import LazyfsError, MountFailed, NotNative, UsageError, require
from lazyfs.kernel.open_files import require_open_files
from lazyfs.mount.table import absolute, find_mount
from lazyfs.portable.daemon import Reporter, exit_error, fork_daemon
from lazyfs.reports.orders import MountOrder
from lazyfs.reports.results import PortableResult
from lazyfs.reports.steps import Step
from lazyfs.reports.wire import Refused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("directory", metavar="DIR", type=Path, help="where; it must exist")
    parser.add_argument("--mode", choices=("auto", "native", "portable"), default="auto", help="see above (default: auto)")
    parser.add_argument(
        "--background",
        choices=("on", "off", "wait"),
        default="on",
        help="fetch the rest of the image in the background: on (default), off, or wait until the image is complete",
    )
    parser.add_argument(
        "--rw", metavar="UPPER", type=Path, help="native: writable, changes go to the directory UPPER (made if need be)"
    )
    parser.add_argument(
        "--record",
        metavar="FILE",
        type=Path,
        help="native: at its end, write the files in the order of their first use (for convert --prioritize)",
    )
    parser.add_argument(
        "--lazy-only", action="store_true", help="refuse an image with a layer that is not lazy, instead of fetching it whole"
    )
    parser.add_argument("--foreground", action="store_true", help="portable: stay, and log to the terminal; Ctrl-C unmounts")
    add_store(parser)
    add_store_size(parser)
    parser.add_argument("--json", action="store_true", help="say what was mounted as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """Mount. Raises LazyfsError."""
    directory = absolute(arguments.directory)
    if find_mount(directory):  # checked first: a mount whose process has died fails every access
        raise MountFailed(f"{directory} is a lazyfs mount already", hint=f"Unmount it first: lazyfs umount {directory}")
    if not directory.is_dir():
        raise MountFailed(f"{directory} is not a directory", hint="Make it first")
    directory = directory.resolve()  # the path that the mount table will have
    store = store_of(arguments)
    reference = reference_of(arguments)
    _check_not_hidden(directory, "the store", store)
    if reference.transport == "oci":
        _check_not_hidden(directory, "the image", Path(reference.location))
    if not Client(store).is_running():
        require("lazyfs mount", "pyfuse3")
    if _chosen_mode(arguments, store) == "native":
        try:
            return _mount_natively(arguments, directory, store)
        except Refused as refused:
            if not refused.unsupported or arguments.mode == "native" or _needs_native(arguments):
                raise
            print(f"lazyfs: mounting portably: {refused}", file=sys.stderr)
    return _mount_portably(arguments, directory, store)


def _chosen_mode(arguments: argparse.Namespace, store: Path) -> str:
    """`native` or `portable`; prints the choice for `--mode auto`. Raises UsageError, NotNative."""
    needs = _needs_native(arguments)
    if arguments.foreground and (arguments.mode == "native" or needs):
        raise UsageError(f"--foreground stays with a portable mount, and {needs or '--mode native'} wants a native one")
    if arguments.mode == "portable" or arguments.foreground:
        if needs:
            raise UsageError(f"{needs} needs a native mount, and --mode portable excludes it")
        return "portable"
    reason = _why_not_native(arguments, store)
    if reason and (arguments.mode == "native" or needs):
        raise NotNative(
            f"this machine cannot mount natively: {reason}", hint="" if needs else "--mode portable can, or auto, which chooses"
        )
    if arguments.mode == "auto":
        print(f"lazyfs: mounting {f'portably: {reason}' if reason else 'natively'}", file=sys.stderr)
    return "portable" if reason else "native"


def _why_not_native(arguments: argparse.Namespace, store: Path) -> str:
    """Why a native mount is not possible; empty if it can be tried."""
    if os.geteuid() != 0:
        return "only root can mount natively"
    paths = (arguments.directory, arguments.source, store, arguments.rw or "", arguments.record or "")
    try:
        "".join(map(str, paths)).encode()
    except UnicodeEncodeError:
        return "lazyfsd takes no paths that are not UTF-8"
    if Client(store).is_running():
        return ""  # it has probed the machine
    from lazyfs.native.probe import probe

    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    return probe(store).reason


def _needs_native(arguments: argparse.Namespace) -> str:
    """The given option that only a native mount has; empty if there is none."""
    return "--rw" if arguments.rw else "--record" if arguments.record else ""


def _mount_natively(arguments: argparse.Namespace, directory: Path, store: Path) -> int:
    upper = prepare_upper(arguments.rw, directory) if arguments.rw else None
    order = MountOrder(
        ticket=secrets.token_hex(16),
        reference=str(reference_of(arguments)),
        directory=str(directory),
        platform=str(platform_of(arguments)),
        plain_http=arguments.plain_http,
        creds=arguments.creds or "",
        background=arguments.background,
        upper=str(upper or ""),
        record=str(absolute(arguments.record)) if arguments.record else "",
        lazy_only=arguments.lazy_only,
        store_size=store_size_of(arguments),
    )
    answer = follow(Client(store).call(order, start=True))
    if not find_mount(directory):
        raise MountFailed(
            f"lazyfsd has mounted {directory}, but not where this process could see it: it lives in another mount namespace",
            hint="Run the command there, or use another --store here",
        )
    if arguments.json:
        print(json.dumps({name: getattr(answer, name) for name in ("image", "directory", "pid", "mode")}), flush=True)
    return 0


def prepare_upper(upper: Path, directory: Path) -> Path:
    """The upper directory, created if it does not exist. Raises MountFailed."""
    upper = absolute(upper)
    try:
        upper.mkdir(mode=0o755, parents=True, exist_ok=True)
        upper = upper.resolve()
    except OSError as error:
        raise MountFailed(f"the upper directory {upper} cannot be made: {error.strerror}") from error
    if directory.is_relative_to(upper) or upper.is_relative_to(directory):
        raise MountFailed(f"{upper} and {directory} lie within each other", hint="Name an upper directory elsewhere")
    return upper


def _mount_portably(arguments: argparse.Namespace, directory: Path, store: Path) -> int:
    require_open_files("a portable mount")
    require("a portable mount", "pyfuse3")
    reference, access, platform = reference_of(arguments), access_of(arguments), platform_of(arguments)
    store_size = store_size_of(arguments)

    def serve(reporter: Reporter) -> None:
        # Imported in the child only: the parent just waits.
        from lazyfs.mount.logs import log_to_file, log_to_terminal
        from lazyfs.portable.mount import MountRequest
        from lazyfs.portable.mount import serve as serve_portable

        if arguments.foreground:
            log_to_terminal()
        else:
            log_to_file(store, directory)
        request = MountRequest(
            reference,
            directory,
            store,
            platform,
            access,
            arguments.background,
            lazy_only=arguments.lazy_only,
            store_size=store_size,
        )
        serve_portable(request, reporter)

    if arguments.foreground:
        serve(Reporter(None))
        return 0
    pid, reports = fork_daemon(serve)
    try:
        return _follow(pid, reports, directory, arguments)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise


def _follow(pid: int, reports: Iterator[Step | PortableResult], directory: Path, arguments: argparse.Namespace) -> int:
    first = follow(reports, partial(exit_error, pid))
    os.statvfs(directory)  # returns when the mount answers
    if arguments.json:
        print(json.dumps({"image": first.image, "directory": str(directory), "pid": pid, "mode": "portable"}), flush=True)
    if arguments.background == "wait":
        follow(reports, partial(_incomplete, directory))
    return 0


def _incomplete(directory: Path) -> LazyfsError:
    return MountFailed(
        f"the mount at {directory} was unmounted before the image was complete", hint="What has arrived is kept: mount it again"
    )


def _check_not_hidden(directory: Path, what: str, path: Path) -> None:
    """Raises MountFailed if the mount would hide files that its own process needs."""
    if path.resolve().is_relative_to(directory):
        raise MountFailed(f"{directory} holds {what} ({path}), which the mount would hide", hint="Mount it at another directory")
