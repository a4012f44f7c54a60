"""When a file system has really ended: not when its mount point is gone, but when its last user is.

inotify tells of it (IN_UNMOUNT, inotify(7)), whoever unmounted it and however, and a watch keeps no mount busy.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = os.O_CLOEXEC
_IN_UNMOUNT: Final = 0x2000
_IN_DELETE_SELF: Final = 0x400
_EVENT: Final = struct.Struct("iIII")


class Ends:
    """Watches over file systems. `fileno` is readable when `ended` has something to tell. Not thread-safe."""

    def __init__(self) -> None:
        """Raises OSError: the user's limit of inotify instances is reached."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise _failed("inotify_init1")

    def fileno(self) -> int:
        """To wait for."""
        return int(self._fd)

    def add(self, root: str) -> int:
        """Watch the file system that is mounted at `root`; returns the number by which `ended` will name it. Raises OSError."""
        # Some event must be asked for: this one cannot happen to a root.
        watch = int(self._libc.inotify_add_watch(self._fd, os.fsencode(root), _IN_DELETE_SELF))
        if watch < 0:
            raise _failed(f"inotify_add_watch({root})")
        return watch

    def ended(self) -> list[int]:
        """The numbers of those that have ended since the last call; never waits."""
        found: list[int] = []
        while True:
            try:
                data = os.read(self._fd, 64 << 10)
            except BlockingIOError:
                return found
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size + length
                if mask & _IN_UNMOUNT:
                    found.append(watch)

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    hint = " (fs.inotify.max_user_instances or max_user_watches)" if number in (errno.EMFILE, errno.ENOSPC) else ""
    return OSError(number, os.strerror(number) + hint, what)
