"""Reports when a file system has really ended: not when it is unmounted, but when its last user is gone.

inotify reports it (IN_UNMOUNT, inotify(7)) however it was unmounted, and a watch does not keep a mount busy.
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
    """Watches on file systems. `fileno` is readable when `ended` has something to return. Not thread-safe."""

    def __init__(self) -> None:
        """Raises OSError if the user's limit of inotify instances is reached."""
        self._fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._fd

    def add(self, root: str) -> int:
        """Watch the file system that is mounted at `root`; returns the number under which `ended` will report it. Raises OSError."""
        # At least one event is required: this one cannot happen to a root.
        return _call("inotify_add_watch", self._fd, os.fsencode(root), _IN_DELETE_SELF, about=root)

    def ended(self) -> list[int]:
        """The numbers of file systems that ended since the last call; never blocks."""
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
        """Stop watching."""
        os.close(self._fd)


def _call(function: str, *arguments: int | bytes, about: str = "") -> int:
    try:
        return call(function, *arguments, about=f"{function}({about})")
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENOSPC}:
            raise
        hint = f"{error.strerror} (fs.inotify.max_user_instances or max_user_watches)"
        raise OSError(error.errno, hint, error.filename) from None
