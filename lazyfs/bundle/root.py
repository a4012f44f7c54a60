"""Reads files of an image's root file system from outside, without leaving it: symbolic links of the image cannot lead out.

The image's author controls the root. So a path is walked component by component, each link is read and resolved in turn, an absolute one
from the image's root, and `..` stops there. This is RESOLVE_IN_ROOT of openat2(2), without its minimum kernel version and ctypes.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from lazyfs.errors import InvalidInput, LocalError

_MAX_LINKS: Final = 40
"""The kernel's own limit."""
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def read_in_root(root: Path, name: str, limit: int) -> bytes | None:
    """The content of the regular file that a process in `root` finds at the absolute path `name`; None if there is none.

    May wait for a fetch. Raises InvalidInput for more than `limit` bytes, LocalError if it cannot be read.
    """
    try:
        found = _open_path(root, os.fsencode(name))
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise LocalError(f"cannot look up {name} in {root}: {error.strerror}") from error
    try:
        # Only a regular file is opened: a FIFO would block, and a device might do anything.
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return None
        with open(f"/proc/self/fd/{found}", "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise LocalError(
            f"cannot read the image's {name}: {error.strerror}", hint="If it has yet to be fetched, the registry may be away"
        ) from error
    finally:
        os.close(found)
    if len(data) > limit:
        raise InvalidInput(f"the image's {name} has more than {limit} bytes")
    return data


def _open_path(root: Path, path: bytes) -> int:
    """An O_PATH descriptor of what `path` leads to, never a symbolic link. Raises OSError."""
    todo = path.split(b"/")[::-1]
    way = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(way) > 1:
                    os.close(way.pop())
                continue
            way.append(os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=way[-1]))
            if not stat.S_ISLNK(os.fstat(way[-1]).st_mode):
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(b"", dir_fd=way[-1])
            todo += target.split(b"/")[::-1]
            for fd in way[1 if target.startswith(b"/") else -1 :]:
                os.close(fd)
            del way[1 if target.startswith(b"/") else -1 :]
        return os.dup(way[-1])
    finally:
        for fd in way:
            os.close(fd)
