"""Files of an image's root file system, read from outside: whatever its symbolic links say, nothing outside is reached.

The root belongs to the image's author. So a path is walked step by step, each link read and walked in turn, an absolute
one from the image's root, and `..` stops there: what openat2(2) calls RESOLVE_IN_ROOT, without its kernel and its ctypes.
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
    """The regular file that a process in `root` would find under the absolute `name`; None where there is none.

    May wait for a fetch. Raises InvalidInput for more than `limit` bytes, LocalError for one that cannot be read.
    """
    try:
        found = _open_path(root, os.fsencode(name))
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise LocalError(f"cannot look up {name} in {root}: {error.strerror}") from error
    try:
        # What is not a regular file is not even opened: a FIFO would block, a device might do anything.
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
