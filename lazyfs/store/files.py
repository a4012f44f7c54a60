"""Where the bytes of an object lie: objects/NAME when it is whole, partial/NAME while it is under way.

Renames make every change of found, so that at any moment a name holds all of an object or is not there. Who looks for
a file looks in objects/ first: where both exist (a crash between two steps), the partial one is the leftover. Nothing
here is synced: durability.py tells after a power cut which bytes are there.

Each object has a twin, arrived/NAME, a hard link. A native mount looks for a file in objects/, at the gate, in arrived/:
when the first says no and the gate has fetched it, the last must have it. So a twin comes before its object and goes after
it: what objects/ shows, arrived/ has. (A crash may leave a twin alone; nobody looks there without the gate's word.)
Where the file system has no hard links there are no twins, and no native mounts.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from lazyfs.kernel.handle import handle_of
from lazyfs.store.directory import Directory

_log = logging.getLogger("lazyfs.store")

_WINDOW = 4 << 20
_NO_HANDLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class FoundFile(NamedTuple):
    """A file as it is found."""

    path: str
    inode: int
    whole: bool


class Files:
    """The folders objects/, arrived/ and partial/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._links = True
        """Whether the file system has hard links, as far as is known."""
        self._naming = threading.Lock()
        """Held while an object that is there is taken for published, or removed to make room."""

    def find(self, name: str) -> FoundFile | None:
        """Where the object lies now."""
        # objects/ twice: the file may be renamed there between the two looks.
        for folder in (self._directory.objects, self._directory.partial, self._directory.objects):
            try:
                return FoundFile(folder + name, os.stat(folder + name).st_ino, folder == self._directory.objects)
            except FileNotFoundError:
                continue
        return None

    def identity(self, name: str) -> bytes:
        """Which file has the object's bytes; no later file under that name has the same identity. Empty where there is none. Raises
        OSError."""
        found = self.find(name)
        return _identity(found.path) if found else b""

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
            if not self._link(temporary, name):
                # Somebody else has made it, or a crash has left the twin. An object that is right stays: it may be on
                # disk by now, which this one is not.
                with self._naming:
                    if self._published(name) is not None and self._has_content(self._directory.objects + name, data):
                        os.unlink(temporary)
                        return
                self._replace_twin(temporary, name)
            os.rename(temporary, self._directory.objects + name)
        except OSError:
            self._undo_put(temporary, name)
            raise

    def published(self, name: str) -> int | None:
        """The size of the object; None unless both names hold it. A twin that is missing is made. Raises OSError."""
        with self._naming:
            return self._published(name)

    def _published(self, name: str) -> int | None:
        try:
            status = os.stat(self._directory.objects + name)
        except FileNotFoundError:
            return None
        try:
            twin = os.stat(self._directory.arrived + name).st_ino
        except FileNotFoundError:
            twin = 0
        if twin != status.st_ino:
            self._replace_twin(self._directory.objects + name, name)
        return status.st_size if self._links else None

    def _link(self, path: str, name: str) -> bool:
        """Make a finished file the twin; False where there is one already."""
        if self._links:
            try:
                os.link(path, self._directory.arrived + name)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._links = False
        return True

    def _replace_twin(self, path: str, name: str) -> None:
        """Make a finished file the twin, in found of another."""
        if self._link(path, name):
            return
        temporary = self._directory.new_temporary()
        try:
            os.link(path, temporary)
            os.rename(temporary, self._directory.arrived + name)
        finally:
            self.discard(temporary)  # a rename between two names of one file leaves both

    def _undo_put(self, temporary: str, name: str) -> None:
        self.discard(temporary)
        if not os.path.exists(self._directory.objects + name):
            self.discard(self._directory.arrived + name)

    def _has_content(self, path: str, data: bytes | memoryview) -> bool:
        try:
            with open(path, "rb") as file:
                return file.read(len(data) + 1) == data
        except FileNotFoundError:
            return False

    def put_chunk(self, name: str, size: int, offset: int, data: bytes | memoryview) -> bytes:
        """Put a chunk of an object of `size` bytes in its found; the answer is the identity of the file that has it.

        Raises OSError: bytes without a row are nothing.
        """
        partial = self._directory.partial + name
        try:
            fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            whole = self._find_in_object(name, offset, data)
            if whole:
                return whole
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
            _write(fd, data, offset)
            return _identity(fd)
        finally:
            os.close(fd)

    def _find_in_object(self, name: str, offset: int, data: bytes | memoryview) -> bytes:
        """The object's identity where these bytes are in it already: a crash came between its rename and the commit of its rows."""
        found = self.find(name)
        if found is None or not found.whole:
            return b""
        fd = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.pread(fd, len(data), offset) == data:
                return _identity(fd)
        finally:
            os.close(fd)
        self.demote(name, self.copy_without(found.path, offset, len(data)))
        return b""

    def promote(self, name: str) -> None:
        """All chunks are here: partial/ to objects/. In the transaction that says so."""
        whole, partial = self._directory.objects + name, self._directory.partial + name
        try:
            if os.path.exists(whole):
                os.unlink(partial)
            else:
                os.chmod(partial, 0o444)
                self._replace_twin(partial, name)
                os.rename(partial, whole)
        except FileNotFoundError:
            pass  # it is an object already, or the reader who misses it will say so
        except OSError as error:
            _log.warning("cannot move %s out of partial/: %s", name, error)

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

    def demote(self, name: str, copy: str | None) -> None:
        """An object with a damaged chunk is not an object: `copy` goes on in partial/ (None: nothing does).

        The object itself is not touched but unlinked: who has it open, a kernel that serves it included, keeps what it was.
        """
        if copy is not None:
            os.rename(copy, self._directory.partial + name)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove an object, its twin after it; either may be gone."""
        self.discard(self._directory.objects + name)
        self.discard(self._directory.arrived + name)

    def evict(self, name: str, found: FoundFile, protected: Callable[[str], bool]) -> bool:
        """Remove the object, or the file under way, that was found there, unless `protected(name)`: whether it has gone.

        Whoever notes that a name is protected, and then asks `published`, is told the truth for as long as it is. Raises OSError.
        """
        with self._naming:
            if protected(name):
                return False
            if self.find(name) == found:
                self.discard(found.path)
                if found.whole:
                    self.discard(self._directory.arrived + name)
            return True

    def discard(self, path: str) -> None:
        """Remove a file that may be gone."""
        with suppress(FileNotFoundError):
            os.unlink(path)


def _identity(file: str | int) -> bytes:
    try:
        return handle_of(file)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return b""  # it has just gone, or become an object: the next one to look will see
        if error.errno not in _NO_HANDLES:
            raise
        # A number that another file may get, where there is nothing better: such file systems carry no native mounts either.
        return b"%d" % os.stat(file).st_ino


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
