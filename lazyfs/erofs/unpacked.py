"""As reader.py, for a layer that containerd unpacked into a directory. Such layers may be anywhere in a stack.

It opens one name at a time by descriptor and follows no symbolic link: the contents come from an image and may be hostile.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from lazyfs.erofs.xattrs import OVERLAY
from lazyfs.errors import StoreUnusable
from lazyfs.format.entry import Entry

_OPAQUE: Final = OVERLAY + b"opaque"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnpackedLayer:
    """One directory. A context manager; its `look_up` is that of an image (reader.py)."""

    def __init__(self, path: Path) -> None:
        """Raises StoreUnusable."""
        self._path = path
        try:
            self._root = os.open(path, _OPEN)
        except OSError as error:
            raise StoreUnusable(f"the unpacked layer at {path} cannot be read: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def look_up(self, path: bytes) -> tuple[Entry | None, bool]:
        """(the directory at `path` or None, whether this layer hides `path` of the layers below). Raises StoreUnusable."""
        try:
            return self._look_up(path)
        except OSError as error:
            raise StoreUnusable(f"the unpacked layer at {self._path} cannot be read: {error.strerror}") from error

    def _look_up(self, path: bytes) -> tuple[Entry | None, bool]:
        folder = os.dup(self._root)
        try:
            covered = _is_opaque(folder)
            for name in path.split(b"/") if path else ():
                try:
                    kind = os.lstat(name, dir_fd=folder).st_mode
                except FileNotFoundError:
                    return None, covered
                if not stat.S_ISDIR(kind):  # a whiteout as well
                    return None, True
                deeper = os.open(name, _OPEN, dir_fd=folder)
                os.close(folder)
                folder = deeper
                covered = covered or _is_opaque(folder)
            return _entry(path, folder), covered
        finally:
            os.close(folder)


def _entry(path: bytes, folder: int) -> Entry:
    status = os.fstat(folder)
    own = []
    for name in sorted(map(os.fsencode, os.listxattr(folder))):
        if not name.startswith(OVERLAY):
            with suppress(FileNotFoundError):
                own.append((name, os.getxattr(folder, name)))
    return Entry(path, "dir", stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs=tuple(own))


def _is_opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False
