"""Where the bytes of an object lie: objects/NAME when it is whole, partial/NAME while it is under way.

Renames make every change of place, so that at any moment a name holds all of an object or is not there. Who looks for
a file looks in objects/ first: where both exist (a crash between two steps), the partial one is the leftover. Nothing
here is synced: the sums in the index tell after a power cut which bytes are there.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import NamedTuple

from lazyfs.store.content import SINGLE
from lazyfs.store.directory import Directory

_log = logging.getLogger("lazyfs.store")

_WINDOW = 4 << 20


class Place(NamedTuple):
    """A file as it is found."""

    path: str
    inode: int
    whole: bool


class Files:
    """The folders objects/ and partial/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def find(self, name: str) -> Place | None:
        """Where the object lies now."""
        # objects/ twice: the file may be renamed there between the two looks.
        for folder in (self._directory.objects, self._directory.partial, self._directory.objects):
            try:
                return Place(folder + name, os.stat(folder + name).st_ino, folder == self._directory.objects)
            except FileNotFoundError:
                continue
        return None

    def open(self, name: str) -> int | None:
        """A descriptor to read the object with."""
        for folder in (self._directory.objects, self._directory.partial, self._directory.objects):
            try:
                return os.open(folder + name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        return None

    def put_whole(self, name: str, data: bytes | memoryview) -> None:
        """Make the object of a single chunk. Raises OSError: nothing is left then."""
        temporary = self._directory.new_temporary()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            try:
                _write(fd, data, 0)
                os.fchmod(fd, 0o444)
            finally:
                os.close(fd)
            os.rename(temporary, self._directory.objects + name)
        except OSError:
            os.unlink(temporary)
            raise

    def put_piece(self, name: str, size: int, offset: int, data: bytes | memoryview) -> None:
        """Put a chunk of an object of `size` bytes in its place. Raises OSError: bytes without a row are nothing."""
        partial = self._directory.partial + name
        try:
            fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if self._objects_holds(name, offset, data):
                return
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
            _write(fd, data, offset)
        finally:
            os.close(fd)

    def _objects_holds(self, name: str, offset: int, data: bytes | memoryview) -> bool:
        """Whether these bytes are in the object already: a crash came between its rename and the commit of its rows."""
        place = self.find(name)
        if place is None or not place.whole:
            return False
        fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.pread(fd, len(data), offset) == data:
                return True
        finally:
            os.close(fd)
        self.demote(place, name, self.copy_without(place.path, offset, len(data)))
        return False

    def promote(self, name: str) -> None:
        """All chunks are here: partial/ to objects/. In the transaction that says so."""
        whole, partial = self._directory.objects + name, self._directory.partial + name
        try:
            if os.path.exists(whole):
                os.unlink(partial)
            else:
                os.chmod(partial, 0o444)
                os.rename(partial, whole)
        except FileNotFoundError:
            pass  # it is an object already, or the reader who misses it will say so
        except OSError as error:
            _log.warning("%s stays in partial/: %s", name, error)

    def copy_without(self, path: str, offset: int, size: int) -> str:
        """A temporary copy of an object but for one range, left as a hole. Raises OSError: nothing is left then."""
        temporary = self._directory.new_temporary()
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                end = os.fstat(source).st_size
                os.ftruncate(target, end)
                for low, high in ((0, offset), (offset + size, end)):
                    for at in range(low, high, _WINDOW):
                        _write(target, os.pread(source, min(_WINDOW, high - at), at), at)
            finally:
                os.close(target)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(source)
        return temporary

    def demote(self, place: Place, name: str, copy: str | None) -> None:
        """An object with a damaged chunk is no object: `copy` goes on in partial/ (None: nothing does).

        The object itself is not touched but unlinked: who has it open, a kernel that serves it included, keeps what it was.
        """
        if copy is not None:
            os.rename(copy, self._directory.partial + name)
        os.unlink(place.path)

    def discard(self, path: str) -> None:
        """Remove a file that may be gone."""
        with suppress(FileNotFoundError):
            os.unlink(path)


def is_single(name: str) -> bool:
    """Whether the object is one chunk."""
    return name.startswith(SINGLE)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
