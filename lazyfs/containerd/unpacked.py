"""A layer's directory that containerd has unpacked into.

containerd sets the extended attributes of a layer's tar as they are (core/diff/apply/apply_linux.go), including those that overlayfs
interprets. With `trusted.overlay.metacopy` and `trusted.overlay.redirect` on a file, an image would get the data of any object in the store
whose name it knows. So these attributes are removed before anything is mounted on the layer; an image may only set "opaque". containerd
also creates a directory whose name begins with `.wh.` if the tar has an entry below such a name. A lazy layer does not show it
(format/whiteout.py), and an image must not depend on which of its layers are lazy, so these directories are removed as well.

The tree is hostile: only directories are opened, symbolic links are not followed, no long paths are used, and depth does not cost
descriptors.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from lazyfs.errors import StoreUnusable
from lazyfs.format.entry import WHITEOUT_PREFIX
from lazyfs.kernel.removal import remove_tree

_log = logging.getLogger(__name__)

_OVERLAY: Final = "trusted.overlay."
_OPAQUE: Final = "trusted.overlay.opaque"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT: Final = os.fsdecode(WHITEOUT_PREFIX)
_HELD: Final = 64
"""Directories on the way down that stay open: a running container may move or remove them meanwhile. Deeper ones are reopened through
`..`."""


def strip(directory: Path) -> int:
    """Remove the attributes that overlayfs interprets from `directory` and everything in it, except "opaque" of a directory; returns
    how many were removed. Directories named like a whiteout are removed as well, with their content.

    Raises StoreUnusable. Costs 0.2 s for 30,000 files.
    """
    removed = directories = 0
    with _errors_explained(directory), closing(_walk(directory)) as found:
        for folder, name, status in found:
            if name.startswith(_WHITEOUT) and stat.S_ISDIR(status.st_mode):
                remove_tree(Path(f"/proc/self/fd/{folder}/{name}"))
                directories += 1
                continue
            # By a path in /proc: before Linux 6.13 no xattr call takes a directory descriptor and a name.
            path = f"/proc/self/fd/{folder}/{name}"
            for attribute in os.listxattr(path, follow_symlinks=False):
                if attribute.startswith(_OVERLAY) and not (attribute == _OPAQUE and _is_opaque(path, status)):
                    os.removexattr(path, attribute, follow_symlinks=False)
                    removed += 1
    if directories:
        _log.info("%s: left out %d directories named like whiteouts, with what is in them", directory, directories)
    return removed


def usage(directory: Path) -> tuple[int, int]:
    """The number of inodes in `directory`, including itself, and the bytes that they take on disk; hard links count once.

    Source: containerd's continuity, fs/du_unix.go. Files that disappear meanwhile are not counted. Raises StoreUnusable, also if deep
    directories are moved meanwhile.
    """
    inodes = size = 0
    seen: set[tuple[int, int]] = set()
    with _errors_explained(directory), closing(_walk(directory)) as found:
        for _, _, status in found:
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            inodes += 1
            size += status.st_blocks * 512
    return inodes, size


def _is_opaque(path: str, status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"


class _Level:
    """A directory on the way down."""

    __slots__ = ("descriptor", "identity", "pending")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """-1 while it is closed."""
        self.identity = (0, 0)
        self.pending: list[str] | None = None
        """Its subdirectories that are not visited yet; None before it was read."""

    def release(self) -> None:
        """Close it, and remember its identity."""
        self.identity = _identity(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = -1

    def regain(self, child: int) -> None:
        """Open it again, as the parent of `child`. Raises OSError: ESTALE if that is another directory now."""
        self.descriptor = os.open("..", _DIRECTORY, dir_fd=child)
        if _identity(self.descriptor) != self.identity:
            raise OSError(errno.ESTALE, "a directory was moved meanwhile")


def _walk(directory: Path) -> Generator[tuple[int, str, os.stat_result], None, None]:
    """Yields `directory`, as `.`, and everything below it on the same file system: descriptor of the parent, name, status."""
    levels = [_Level(os.open(directory, _DIRECTORY))]
    try:
        root = os.fstat(levels[0].descriptor)
        yield levels[0].descriptor, ".", root
        while levels:
            level = levels[-1]
            if level.pending is None:
                level.pending = []
                with os.scandir(level.descriptor) as entries:
                    for entry in entries:
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        if not stat.S_ISDIR(status.st_mode):
                            yield level.descriptor, entry.name, status
                        elif status.st_dev == root.st_dev:
                            yield level.descriptor, entry.name, status
                            level.pending.append(entry.name)
            elif level.pending:
                try:
                    levels.append(_Level(os.open(level.pending.pop(), _DIRECTORY, dir_fd=level.descriptor)))
                except FileNotFoundError:
                    continue
                if len(levels) > _HELD:
                    level.release()
            else:
                if len(levels) > 1 and levels[-2].descriptor < 0:
                    levels[-2].regain(level.descriptor)
                os.close(levels.pop().descriptor)
    finally:
        for level in levels:
            if level.descriptor >= 0:
                os.close(level.descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


@contextmanager
def _errors_explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable(f"cannot read what was unpacked into {directory}: {error.strerror}") from error
