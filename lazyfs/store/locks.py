"""Byte-range locks between processes: F_OFD_SETLK.

They belong to the open file, not to the process. The kernel releases them when the last copy of the descriptor is closed, also
on kill -9. Closing another descriptor of the same file does not drop them (as with plain fcntl locks), and a shared lock
becomes an exclusive one atomically (unlike flock). Locks of one open file never conflict: threads that share it coordinate
among themselves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from lazyfs.errors import StoreUnusable

_PAUSE = 0.01
TIMEOUT = 60.0
"""Seconds to wait for another process. The longest operation under such a lock empties a large store."""


def try_lock(fd: int, *, shared: bool = False, start: int = 0, length: int = 1) -> bool:
    """Take the lock unless a conflicting one is held. Converts a lock that is already held on the range."""
    try:
        _set(fd, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, start, length)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def lock(fd: int, what: str, *, shared: bool = False, start: int = 0, timeout: float | None = None) -> None:
    """Take the lock; wait at most `timeout` seconds (default TIMEOUT). Raises StoreUnusable, naming `what`, if it is not
    released in time."""
    timeout = TIMEOUT if timeout is None else timeout
    deadline = time.monotonic() + timeout
    while not try_lock(fd, shared=shared, start=start):
        if time.monotonic() > deadline:
            raise StoreUnusable(f"{what} has been locked by another process for {timeout:.0f} seconds", hint="Stop that process.")
        time.sleep(_PAUSE)


def unlock(fd: int, *, start: int = 0, length: int = 1) -> None:
    """Unlock the range, locked or not."""
    _set(fd, fcntl.F_UNLCK, start, length)


def open_lock_file(path: str) -> int:
    """A descriptor to lock with. The file is created, 0600, and never removed: a lock belongs to its inode."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _set(fd: int, kind: int, start: int, length: int) -> None:
    # struct flock with a 64-bit off_t: type, whence, start, len, pid (which must be 0 for these locks).
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))
