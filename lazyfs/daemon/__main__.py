"""`lazyfsd`: the daemon of one state directory, or rather its keeper, which starts the daemon with `--no-keeper`, as systemd does."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyfs.daemon.holding import LISTENER, acquire_missing
from lazyfs.daemon.keeper import keep
from lazyfs.errors import LazyfsError, most_severe, require
from lazyfs.kernel.open_files import require_open_files
from lazyfs.store.directory import adopt
from lazyfs.store.location import default_directory
from lazyfs.store.store_error import store_error

if TYPE_CHECKING:
    from lazyfs.daemon.config import Config

_CONFIG: Final = "/etc/lazyfs/config.toml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
_PAUSE: Final = 5.0
"""Seconds between two failed starts, under systemd."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until nothing is mounted, or with `--service` until a signal. Returns the exit code."""
    parser = argparse.ArgumentParser(
        "lazyfsd", description="Serves the native mounts of one state directory, and containerds as their snapshotter."
    )
    parser.add_argument("--store", metavar="DIR", help=f"the state directory ({default_directory()})")
    parser.add_argument("--service", action="store_true", help="stay when nothing is mounted")
    parser.add_argument(
        "--snapshotter",
        metavar="[NAME=]SOCKET",
        action="append",
        default=[],
        type=_named_socket,
        help="serve the containerd NAME (containerd) as its snapshotter at SOCKET; once for each containerd. Implies --service",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        nargs="?",
        const=_CONFIG,
        help=f"run the service that FILE ({_CONFIG}) describes; options given here win. Implies --service",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="say whether FILE is right, and end: 0; 2 wrong; 5 not readable"
    )
    parser.add_argument(
        "--no-keeper",
        action="store_true",
        help="serve in this process, without a keeper: systemd, for example, restarts it and keeps its descriptors",
    )
    options = parser.parse_args(arguments)
    if len(dict(options.snapshotter)) < len(options.snapshotter):
        parser.error("two --snapshotter options have the same NAME: each containerd needs its own")
    start = _Start()
    code = 1
    try:
        code = _check(Path(options.config or _CONFIG)) if options.check_config else _run(options, start)
    except LazyfsError as failure:
        print(f"lazyfsd: {failure}", file=sys.stderr)
        code = failure.exit_code
    finally:
        if code and not (start.came_up or options.check_config) and os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
            # systemd restarts it at once, as it must when a daemon dies; without a pause, failing starts would fill the log.
            time.sleep(_PAUSE)
    return code


class _Start:
    """Whether the start has succeeded."""

    came_up = False


def _check(path: Path) -> int:
    from lazyfs.daemon.config import load_config

    load_config(path.absolute())
    print(f"{path}: nothing is wrong")
    return 0


def _run(options: argparse.Namespace, start: _Start) -> int:
    store = Path(options.store).absolute() if options.store else default_directory()
    containerds: dict[str, Path] = dict(options.snapshotter)
    config: Config | None = None
    if options.config:
        from lazyfs.daemon.config import load_config

        path = Path(options.config).absolute()
        config = load_config(path)
        store = store if options.store else config.store
        containerds = containerds or config.containerds
    require("lazyfsd", "pyfuse3")
    if containerds:
        require("serving containerd", "grpc", "google.protobuf")
    service = options.service or bool(containerds) or config is not None
    sockets = {LISTENER + name: path for name, path in containerds.items()}
    require_open_files("lazyfsd")
    try:
        adopt(store)  # before anything is written: the store may belong to another user
        if options.no_keeper:
            return _serve(store, config, sockets, start, service=service)
        command = [sys.executable, "-P", "-m", "lazyfs.daemon", "--no-keeper", "--store", str(store)]
        command += ["--service"] if service else []
        command += [f"--snapshotter={name}={path}" for name, path in containerds.items()]
        command += ["--config", str(path)] if config is not None else []
        return keep(store, command, sockets)
    except OSError as error:
        raise store_error(error, f"the store {store} cannot be used") from error


def _named_socket(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    name, path = (name, path) if equals else ("containerd", text)
    if not _NAME.match(name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not [NAME=]SOCKET, NAME of letters, digits and -")
    return name, Path(path).absolute()


def _serve(store: Path, config: Config | None, sockets: dict[str, Path], start: _Start, *, service: bool) -> int:
    # Not imported at the top, because the keeper does not need it.
    import logging

    import msgspec

    from lazyfs.containerd.handshakes import Handshakes
    from lazyfs.daemon.config import Config
    from lazyfs.daemon.fdstore import FdStore
    from lazyfs.mount.logs import log_to_terminal

    os.umask(0o077)
    config = msgspec.structs.replace(config or Config(), store=store)
    log_to_terminal(config.log_level)
    fds = FdStore.from_environment()
    try:
        acquire_missing(fds, store, sockets)
        with Handshakes(fds.named(LISTENER)) as handshakes:
            # Imported here, because it may be slow.
            from lazyfs.daemon.service import Options, run

            run(Options(config, service), fds, handshakes)
    except (LazyfsError, BaseExceptionGroup) as failure:
        error = most_severe(failure) if isinstance(failure, BaseExceptionGroup) else failure
        if not isinstance(error, LazyfsError):
            raise
        logging.getLogger("lazyfs.daemon").error("%s", error)
        return error.exit_code
    finally:
        start.came_up = fds.is_ready
    return 0


if __name__ == "__main__":
    sys.exit(main())
