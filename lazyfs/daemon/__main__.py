"""`lazyfsd`: the daemon of one state directory, or rather its keeper, which starts the daemon with `--kept`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lazyfs.daemon.keeper import keep
from lazyfs.errors import LazyfsError, foremost
from lazyfs.store.directory import adopt, refusal
from lazyfs.store.location import default_directory

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until nothing is mounted any more, or with `--service` until told to end. The exit code."""
    parser = argparse.ArgumentParser("lazyfsd", description="Serves the native mounts of one state directory.")
    parser.add_argument("--store", metavar="DIR", default=str(default_directory()), help="the state directory (%(default)s)")
    parser.add_argument("--service", action="store_true", help="stay when nothing is mounted")
    parser.add_argument(
        "--snapshotter",
        metavar="[NAME=]SOCKET",
        action="append",
        default=[],
        type=_named_socket,
        help="serve the containerd NAME (containerd) as its snapshotter at SOCKET; once for each containerd. Implies --service",
    )
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    store = Path(options.store).absolute()
    if options.kept:
        return _serve(store, service=options.service)
    sockets = {f"snapshots-{name}": path for name, path in options.snapshotter}
    if len(sockets) < len(options.snapshotter):
        parser.error("two --snapshotter have the same NAME: each containerd has its own")
    command = [sys.executable, "-P", "-m", "lazyfs.daemon", "--kept", "--store", str(store)]
    try:
        adopt(store)  # before anything is written to a place that may be another's
        return keep(store, [*command, "--service"] if options.service or sockets else command, sockets)
    except OSError as error:
        failure: LazyfsError = refusal(error, f"the store {store} cannot be used")
    except LazyfsError as error:
        failure = error
    print(f"lazyfsd: {failure}", file=sys.stderr)
    return failure.exit_code


def _named_socket(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    name, path = (name, path) if equals else ("containerd", text)
    if not _NAME.match(name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no [NAME=]SOCKET, NAME of letters, digits and -")
    return name, Path(path).absolute()


def _serve(store: Path, *, service: bool) -> int:
    # What the keeper needs none of is not imported for it.
    import logging

    from lazyfs.daemon.fdstore import FdStore
    from lazyfs.daemon.service import Options, run
    from lazyfs.mount.logs import log_to_terminal

    os.umask(0o077)
    log_to_terminal()
    try:
        run(Options(store, service), FdStore.from_environment())
    except (LazyfsError, BaseExceptionGroup) as failure:
        error = foremost(failure) if isinstance(failure, BaseExceptionGroup) else failure
        if not isinstance(error, LazyfsError):
            raise
        logging.getLogger("lazyfs.daemon").error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
