"""One frozen record for every path of a tree: all that a program could see of it, times of access aside.

Paths are bytes, since names are. Directories are opened by descriptor, one below the other, so that a path longer than
PATH_MAX is an ordinary one, and so that each stat costs the kernel one component.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_TYPES: Final = {
    stat.S_IFDIR: "dir",
    stat.S_IFREG: "reg",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Record(NamedTuple):
    """One path. Sizes of directories and link counts of directories are the file system's own affair, and 0 here."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes
    nlink: int
    xattrs: tuple[tuple[str, bytes], ...]
    rdev: tuple[int, int]
    sha256: str
    """Of a regular file's bytes."""


def walk(root: str | bytes | Path) -> dict[bytes, Record]:
    """A record for every path under `root`, paths relative; `b"."` is the root itself. Raises OSError."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = {b".": _record(os.fstat(descriptor), f"/proc/self/fd/{descriptor}", descriptor, b".", follow=True)}
        found.update(_walk(descriptor, b""))
    finally:
        os.close(descriptor)
    return found


def _walk(folder: int, prefix: bytes) -> Iterator[tuple[bytes, Record]]:
    for name in sorted(os.fsencode(name) for name in os.listdir(folder)):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        yield prefix + name, _record(status, os.fsdecode(b"/proc/self/fd/%d/%s" % (folder, name)), folder, name, follow=False)
        if stat.S_ISDIR(status.st_mode):
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                yield from _walk(descriptor, prefix + name + b"/")
            finally:
                os.close(descriptor)


def _record(status: os.stat_result, path: str, folder: int, name: bytes, *, follow: bool) -> Record:
    """`path` reaches the entry through /proc, for the calls on xattrs, which take no directory descriptor."""
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    keys = os.listxattr(path, follow_symlinks=follow)
    return Record(
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=0 if kind == "dir" else status.st_size,
        mtime_ns=status.st_mtime_ns,
        link=os.readlink(name, dir_fd=folder) if kind == "symlink" else b"",
        nlink=0 if kind == "dir" else status.st_nlink,
        xattrs=tuple(sorted((key, os.getxattr(path, key, follow_symlinks=follow)) for key in keys)),
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in ("char", "block") else (0, 0),
        sha256=_content(name, folder) if kind == "reg" else "",
    )


def _content(name: bytes, folder: int) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
