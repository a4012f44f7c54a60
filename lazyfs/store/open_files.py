"""Open files, and which of their chunks were found right.

A chunk is checked once per process, but only as long as its file is the same: another process may have found damage and put
another file under the name. So the result is remembered with the file's inode and change time. If either differs, the chunk is
checked again.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from lazyfs.store.files import Files

LIMIT = 128
"""Maximum of open files, besides those being read."""

_REMEMBERED = 1 << 16
"""Closed files whose results are remembered, 250 bytes each."""


class OpenFile:
    """A file in objects/ or partial/, open for reading."""

    __slots__ = ("checked", "current", "fd", "identity", "inode", "name", "size", "users")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino
        self.size = status.st_size
        self.identity = (status.st_ino, status.st_ctime_ns)
        self.checked = bytearray()
        """One bit per chunk by position, up to the last one that was checked."""
        self.users = 0
        self.current = True
        """False once it is out of the list: then its last user closes it."""

    def is_checked(self, position: int) -> bool:
        """Whether the chunk was found right."""
        byte = position >> 3
        return byte < len(self.checked) and self.checked[byte] >> (position & 7) & 1 == 1


class OpenFiles:
    """The files opened last. Any thread may call it."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._checked: OrderedDict[str, tuple[tuple[int, int], bytearray]] = OrderedDict()

    def take(self, name: str) -> OpenFile | None:
        """The file, if it is open. The caller has to release it."""
        with self._lock:
            file = self._open.get(name)
            if file is not None:
                self._open.move_to_end(name)
                file.users += 1
            return file

    def open(self, name: str) -> OpenFile | None:
        """The file, opened if necessary; None if there is none. Raises OSError. The caller has to release it."""
        file = self.take(name)
        if file is not None:
            return file
        fd = self._files.open(name)
        if fd is None:
            return None
        opened = OpenFile(name, fd)
        with self._lock:
            file = self._open.get(name)
            if file is None:
                identity, checked = self._checked.pop(name, (None, bytearray()))
                if identity == opened.identity:
                    opened.checked = checked
                file = self._open[name] = opened
                while len(self._open) > LIMIT:
                    self._retire(next(iter(self._open)))
            else:
                os.close(fd)
            file.users += 1
            return file

    def release(self, file: OpenFile) -> None:
        """The caller is done reading."""
        with self._lock:
            file.users -= 1
            if not (file.users or file.current):
                os.close(file.fd)

    def mark_checked(self, file: OpenFile, position: int) -> None:
        """The chunk was found right."""
        with self._lock:
            byte = position >> 3
            if byte >= len(file.checked):
                file.checked.extend(bytes(byte + 1 - len(file.checked)))
            file.checked[byte] |= 1 << (position & 7)
            file.size = os.fstat(file.fd).st_size  # the file may have been empty when it was opened

    def forget(self, name: str) -> None:
        """The file was replaced or changed."""
        with self._lock:
            if name in self._open:
                self._retire(name)
            self._checked.pop(name, None)

    def close(self) -> None:
        """Close all files; those in use are closed on release."""
        with self._lock:
            for name in list(self._open):
                self._retire(name)

    def _retire(self, name: str) -> None:
        file = self._open.pop(name)
        file.current = False
        if file.checked:
            self._checked[name] = (file.identity, file.checked)
            if len(self._checked) > _REMEMBERED:
                self._checked.popitem(last=False)
        if not file.users:
            os.close(file.fd)
