"""When a file system has really ended: not when its mount point is gone, but when its last user is.

inotify tells of it (IN_UNMOUNT, inotify(7)), whoever unmounted it and however, and a watch keeps no mount busy.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from lazyfs.kernel.libc import call

_IN_UNMOUNT: Final = 0x2000
_IN_DELETE_SELF: Final = 0x400
_EVENT: Final = struct.Struct("iIII")


class UnmountEvents:
    """Watches over file systems. `fileno` is readable when `ended` has something to tell. Not thread-safe."""

    def __init__(self) -> None:
        """Raises OSError: the user's limit of inotify instances is reached."""
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """To wait for."""
        return self._fd

    def add(self, root: str) -> int:
        """Watch the file system that is mounted at `root`; returns the number by which `ended` will name it. Raises OSError."""
        # Some event must be asked for: this one cannot happen to a root.
        return _call("inotify_add_watch", self._fd, os.fsencode(root), _IN_DELETE_SELF, about=root)

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


def _call(function: str, *arguments: int | bytes, about: str = "") -> int:
    try:
        return call(function, *arguments, about=f"{function}({about})")
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENOSPC}:
            raise
        hint = f"{error.strerror} (fs.inotify.max_user_instances or max_user_watches)"
        raise OSError(error.errno, hint, error.filename) from None
