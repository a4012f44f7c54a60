"""What a running lazyfsd holds: the lock of its store, and its listening sockets.

Standard library only, because the keeper holds them for the daemon.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyfs.errors import LocalError

if TYPE_CHECKING:
    from lazyfs.daemon.fdstore import FdStore

LOCK_NAME: Final = "lazyfsd.lock"
SOCKET_NAME: Final = "lazyfsd.sock"
LISTENER: Final = "snapshots-"
"""The prefix of the names of containerds' sockets."""
_LONGEST_ADDRESS: Final = 107
_BACKLOG: Final = 128
_LOCK_TRIES, _LOCK_PAUSE = 50, 0.2


def lock_store(store: Path) -> int | None:
    """Lock the store. The lock is held while the returned descriptor or a duplicate is open; None if another process has it. Raises OSError."""
    lock = os.open(store / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def listen(path: Path) -> int:
    """A socket that listens at `path`, mode 0600; replaces a dead socket and creates the folder.

    Raises LocalError if another process listens there, because replacing the socket would take its callers away; OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The path may be longer than the address of a socket.
        address = str(path) if len(bytes(path)) <= _LONGEST_ADDRESS else f"/proc/self/fd/{folder}/{path.name}"
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path.name, dir_fd=folder).st_mode):
                if _accepts(address):
                    raise LocalError(f"another process listens at {path}", hint="Stop that process, or choose another path")
                os.unlink(path.name, dir_fd=folder)
        old = os.umask(0o177)
        try:
            listener.bind(address)
        finally:
            os.umask(old)
        listener.listen(_BACKLOG)
        return listener.detach()
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)


def acquire_missing(fds: FdStore, store: Path, sockets: Mapping[str, Path]) -> None:
    """Acquire what was not passed to this process: the lock, the control socket, and `sockets` by name; then store it like the rest.

    A keeper passes everything; systemd what its socket units name, and after a restart what was acquired here. Descriptors that do not
    match are closed, because the configuration may have changed. Raises LocalError, OSError.
    """
    lock = fds.get("lock")
    if lock is not None and not _is_lock_of(lock, store):
        fds.drop("lock")
    if fds.get("lock") is None:
        fds.keep("lock", _lock_with_retries(fds, store))
    wanted = {"control": store / SOCKET_NAME, **sockets}
    for name in ["control", *(LISTENER + rest for rest in fds.named(LISTENER))]:
        found = fds.get(name)
        if found is not None and (name not in wanted or not _is_at(found, wanted[name])):
            fds.drop(name)
    for name, path in wanted.items():
        if fds.get(name) is None:
            fds.keep(name, listen(path))


def _lock_with_retries(fds: FdStore, store: Path) -> int:
    """Raises LocalError if another lazyfsd does not stop."""
    for _ in range(_LOCK_TRIES):
        lock = lock_store(store)
        if lock is not None:
            return lock
        fds.notify(f"STATUS=waiting for another lazyfsd that serves {store}; it ends when nothing is mounted from there")
        time.sleep(_LOCK_PAUSE)
    raise LocalError(
        f"another lazyfsd serves {store}",
        hint="`lazyfs mount` or `lazyfs run` has started it, and it ends with the last mount: `lazyfs status` lists them",
    )


def _is_lock_of(lock: int, store: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(store / LOCK_NAME))
    except FileNotFoundError:
        return False


def _is_at(listener: int, path: Path) -> bool:
    """Whether a listening socket is bound to `path`, as far as its address shows."""
    with socket.socket(fileno=os.dup(listener)) as asked:
        name = asked.getsockname()
    return name == str(path) or str(name).startswith("/proc/self/fd/")


def _accepts(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as caller:
        caller.setblocking(False)
        try:
            caller.connect(address)
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
        return True
