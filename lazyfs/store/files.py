"""The files of objects: objects/NAME when complete, partial/NAME until then.

Every move is a rename, so a name always holds a whole object or does not exist. A reader looks in objects/ first: if both exist
(after a crash between two steps), the partial one is left over. Nothing is synced in this file: after a power failure,
durability.py finds out which bytes are on disk.

Each object has a twin, the hard link arrived/NAME. A native mount looks for a file in objects/, in the gate, and in arrived/.
When the first look fails and the gate has then fetched the object, the last one must find it. So the twin is created before its
object and removed after it: what objects/ has, arrived/ has too. (A crash may leave a twin alone. Nobody looks there unless the
gate says so.) On a file system without hard links there are no twins, and no native mounts.
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
    """A file that was found."""

    path: str
    inode: int
    whole: bool


class Files:
    """The directories objects/, arrived/ and partial/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._links = True
        """Whether the file system supports hard links, as far as known."""
        self._naming = threading.Lock()
        """Held while an existing object is confirmed as published, or evicted."""

    def find(self, name: str) -> FoundFile | None:
        """The file that has the object now."""
        # objects/ twice: the file may be renamed to it between the two looks.
        for folder in (self._directory.objects, self._directory.partial, self._directory.objects):
            try:
                return FoundFile(folder + name, os.stat(folder + name).st_ino, folder == self._directory.objects)
            except FileNotFoundError:
                continue
        return None

    def identity(self, name: str) -> bytes:
        """Identity of the file that has the object's bytes; no later file of that name has the same one. Empty if there is no
        file. Raises OSError."""
        found = self.find(name)
        return _identity(found.path) if found else b""

    def open(self, name: str) -> int | None:
        """A descriptor for reading the object."""
        for folder in (self._directory.objects, self._directory.partial, self._directory.objects):
            try:
                return os.open(folder + name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        return None

    def put_whole(self, name: str, data: bytes | memoryview) -> None:
        """Create an object of one chunk. Raises OSError, and leaves nothing then."""
        temporary = self._directory.new_temporary()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            try:
                _write(fd, data, 0)
                os.fchmod(fd, 0o444)
            finally:
                os.close(fd)
            if not self._link(temporary, name):
                # Another process has created it, or a crash has left the twin. A correct object stays, because it may be on
                # disk already; the new file is not.
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
        """The size of the object; None unless it exists under both names. A missing twin is created. Raises OSError."""
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
        """Link a finished file as the twin; False if there is one already."""
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
        """Make a finished file the twin, in place of another file."""
        if self._link(path, name):
            return
        temporary = self._directory.new_temporary()
        try:
            os.link(path, temporary)
            os.rename(temporary, self._directory.arrived + name)
        finally:
            self.discard(temporary)  # renaming one name of a file to another leaves both

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
        """Write one chunk into the partial file of an object of `size` bytes. Returns the identity of the file that has it.

        Raises OSError. Bytes without a row do not count.
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
        """The object's identity, if it already has these bytes: a crash came between its rename and the commit of its rows."""
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
        """Move a complete object from partial/ to objects/, in the transaction of its last row."""
        whole, partial = self._directory.objects + name, self._directory.partial + name
        try:
            if os.path.exists(whole):
                os.unlink(partial)
            else:
                os.chmod(partial, 0o444)
                self._replace_twin(partial, name)
                os.rename(partial, whole)
        except FileNotFoundError:
            pass  # it is an object already; if not, the next reader that misses it reports it
        except OSError as error:
            _log.warning("cannot move %s out of partial/: %s", name, error)

    def copy_without(self, path: str, offset: int, size: int) -> str:
        """A temporary copy of an object in which one range is a hole. Raises OSError, and leaves nothing then."""
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
        """Unlink an object that has a damaged chunk. `copy` replaces it in partial/ (None: nothing does).

        The file itself is not changed: those that have it open, such as a kernel that serves it, keep what they had.
        """
        if copy is not None:
            os.rename(copy, self._directory.partial + name)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove an object, then its twin. Either may be missing."""
        self.discard(self._directory.objects + name)
        self.discard(self._directory.arrived + name)

    def evict(self, name: str, found: FoundFile, protected: Callable[[str], bool]) -> bool:
        """Remove the object or partial file that was found, unless `protected(name)`. Returns whether it is gone.

        If a caller protects a name and then calls `published`, the answer stays true as long as the name is protected. Raises
        OSError.
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
        """Remove a file, if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(path)


def _identity(file: str | int) -> bytes:
    try:
        return handle_of(file)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return b""  # it was just removed or became an object: the next look finds out
        if error.errno not in _NO_HANDLES:
            raise
        # The inode number, which another file may get later, if there is nothing better. Such file systems cannot carry native
        # mounts.
        return b"%d" % os.stat(file).st_ino


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
