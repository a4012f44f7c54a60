"""Byte-range locks between processes: F_OFD_SETLK.

They belong to the open file, not to the process: the kernel frees them when the last copy of the descriptor is gone,
kill -9 included; closing another descriptor of the same file does not drop them (as with plain fcntl locks); and a
shared lock becomes an exclusive one atomically (as flock does not). Locks of one open file never conflict with each other:
the threads of one store settle that among themselves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from lazyfs.errors import StoreUnusable

_PAUSE = 0.01
PATIENCE = 60.0
"""Seconds to wait for another process. The longest that one holds a lock others wait for: emptying a large store."""


def try_lock(fd: int, *, shared: bool = False, start: int = 0, length: int = 1) -> bool:
    """Take the lock if nobody holds one in its way. A lock already held on the range becomes this one."""
    try:
        _set(fd, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, start, length)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def lock(fd: int, what: str, *, shared: bool = False, start: int = 0, patience: float | None = None) -> None:
    """Take the lock, waiting for others for `patience` seconds (PATIENCE). Raises StoreUnusable, naming `what`, when they do not let go in time."""
    patience = PATIENCE if patience is None else patience
    deadline = time.monotonic() + patience
    while not try_lock(fd, shared=shared, start=start):
        if time.monotonic() > deadline:
            raise StoreUnusable(
                f"{what} has been locked by another process for {patience:.0f} seconds", hint="Stop that process."
            )
        time.sleep(_PAUSE)


def unlock(fd: int, *, start: int = 0, length: int = 1) -> None:
    """Let go of the range, held or not."""
    _set(fd, fcntl.F_UNLCK, start, length)


def open_lock_file(path: str) -> int:
    """A descriptor to lock with; the file is created, 0600, and never removed (a lock lives on its inode)."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _set(fd: int, kind: int, start: int, length: int) -> None:
    # struct flock of a 64-bit off_t: type, whence, start, len, pid (which must be 0 for these locks).
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))
