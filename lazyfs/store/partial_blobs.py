"""Blobs of whole layers, as far as they have arrived: partial/blob-HEX, by their sha256.

A layer that is not lazy comes as one blob. Its bytes are written here in order while they arrive, so that the next attempt, after a
cancellation, a kill or a power cut, asks only for the rest. Only a prefix is ever there, and nothing in it is believed: all of it is
hashed again before the layer is (eager/fetch.py). So nothing here is synced.

Writing or removing one takes the layer's lock (store/layer_lock.py). One that is locked is in use, and its times tell
that its holder lives. They count as used room, are the first to make room, and go when the layer has been unpacked, or after a day.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

from lazyfs.format.digest import Digest, to_raw
from lazyfs.store.claims import Claims
from lazyfs.store.directory import Directory
from lazyfs.store.store_error import store_error

_PREFIX: Final = "blob-"
_NAME: Final = re.compile(rf"{_PREFIX}[0-9a-f]{{64}}")
_MAX_AGE: Final = 86_400.0
"""Seconds for which nobody has gone on with one until it is removed."""


def is_partial_blob(name: str) -> bool:
    """Whether a name of the folder partial/ is a blob's, and not an object's."""
    return _NAME.fullmatch(name) is not None


class PartialBlob:
    """The first bytes of one blob, open, for one thread at a time."""

    def __init__(self, path: str, descriptor: int, limit: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._limit = limit
        self.size = os.fstat(descriptor).st_size
        """Bytes that are there."""
        if self.size > limit:  # of a blob that another manifest calls larger: one of them is wrong
            self.clear()

    def read(self, offset: int, count: int) -> bytes:
        """Bytes from `offset` on, at most `count`. Raises OSError."""
        return os.pread(self._descriptor, count, offset)

    def append(self, data: memoryview) -> None:
        """Write what comes next: never more than the size that the blob is said to have. Raises OSError."""
        if self.size + len(data) > self._limit:
            raise ValueError(f"{self._path} would exceed the {self._limit} bytes of its blob")
        while data:
            written = os.pwrite(self._descriptor, data, self.size)
            self.size += written
            data = data[written:]

    def clear(self) -> None:
        """Begin with nothing again. Raises OSError."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0

    def remove(self) -> None:
        """Give the name and the room up; what is open stays readable. Blocking. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)


class PartialBlobs:
    """The blobs in the folder partial/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @contextmanager
    def open(self, digest: Digest, limit: int) -> Iterator[PartialBlob]:
        """The blob of at most `limit` bytes, made where it is not there. Only for the holder of the layer's lock.

        Raises StoreFull, StoreUnusable.
        """
        path = self._path(digest)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                part = PartialBlob(path, descriptor, limit)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise store_error(error, f"{path} cannot be made") from error
        try:
            yield part
        finally:
            os.close(descriptor)

    def begin(self, digest: Digest) -> None:
        """The layer's lock is held from now on. A file of no bytes, where there is none."""
        with suppress(OSError):  # without room for a file: then others do not wait for long
            os.close(os.open(self._path(digest), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def touch(self, digests: Iterable[Digest]) -> None:
        """Show those who wait that the holder of these layers' locks is alive. Blocking."""
        for digest in digests:
            with suppress(OSError):
                os.utime(self._path(digest))

    def last_touched(self, digest: Digest) -> tuple[int, int] | None:
        """What changes as long as the holder of a layer's lock lives. A stat."""
        try:
            status = os.stat(self._path(digest))
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def truncate(self, digest: Digest) -> None:
        """Give the room up of what is there: nobody reads it any more. For the holder of the layer's lock, whose tar is whole."""
        with suppress(OSError):
            os.truncate(self._path(digest), 0)

    def remove_if_empty(self, digest: Digest) -> None:
        """Nobody is at it any more: what holds nothing is removed. For who lets go of the layer's lock."""
        with suppress(OSError):
            if not os.stat(self._path(digest)).st_size:
                os.unlink(self._path(digest))

    def files(self) -> list[tuple[str, os.stat_result]]:
        """All of them: names in partial/, and what a stat tells; the one that nobody has gone on with for longest first."""
        found = []
        for name in filter(is_partial_blob, os.listdir(self._directory.partial)):
            with suppress(FileNotFoundError):
                found.append((name, os.stat(self._directory.partial + name)))
        return sorted(found, key=lambda each: each[1].st_mtime)

    def evict(self, name: str) -> bool:
        """Remove one, unless somebody is at it: whether it has gone. Blocking. Raises OSError."""
        raw = bytes.fromhex(name.removeprefix(_PREFIX))
        with closing(Claims(self._directory.path / "claims")) as claims:
            if not claims.claim(raw):
                return False
            with suppress(FileNotFoundError):
                os.unlink(self._directory.partial + name)
        return True

    def remove_old(self) -> int:
        """Remove those that nobody has gone on with for a day: how many. Raises OSError."""
        now = time.time()
        return sum(self.evict(name) for name, status in self.files() if now - status.st_mtime > _MAX_AGE)

    def _path(self, digest: Digest) -> str:
        return f"{self._directory.partial}{_PREFIX}{to_raw(digest).hex()}"
