"""Partial blobs: the part of an eager layer that has arrived, in partial/blob-HEX, by the sha256 of the blob.

An eager layer is fetched as one blob. Its bytes are written here in order as they arrive, so that the next attempt, after a
cancellation, a kill or a power failure, requests only the rest. A file always holds a prefix of the blob, and nothing in it is
trusted: all of it is hashed again before the layer is accepted (eager/fetch.py). So nothing here is synced.

Writing or removing one needs the layer lock (store/layer_lock.py). While it is locked, its times are the heartbeat of the
lock's holder. Partial blobs count as used space, are evicted first, and are removed when the layer has been unpacked, or after
a day.
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
"""Seconds without a write after which one is removed."""


def is_partial_blob(name: str) -> bool:
    """Whether this name in partial/ is a blob's, not an object's."""
    return _NAME.fullmatch(name) is not None


class PartialBlob:
    """The beginning of one blob, open. For one thread at a time."""

    def __init__(self, path: str, descriptor: int, limit: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._limit = limit
        self.size = os.fstat(descriptor).st_size
        """Bytes in the file."""
        if self.size > limit:  # of a blob that another manifest declares larger: one of them is wrong
            self.clear()

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`. Raises OSError."""
        return os.pread(self._descriptor, count, offset)

    def append(self, data: memoryview) -> None:
        """Append bytes, never beyond the declared size of the blob. Raises OSError."""
        if self.size + len(data) > self._limit:
            raise ValueError(f"{self._path} would exceed the {self._limit} bytes of its blob")
        while data:
            written = os.pwrite(self._descriptor, data, self.size)
            self.size += written
            data = data[written:]

    def clear(self) -> None:
        """Start over with an empty file. Raises OSError."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0

    def remove(self) -> None:
        """Unlink it; open descriptors stay readable. Blocking. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)


class PartialBlobs:
    """The blobs in the directory partial/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @contextmanager
    def open(self, digest: Digest, limit: int) -> Iterator[PartialBlob]:
        """The blob of at most `limit` bytes, created if missing. Only for the holder of the layer lock.

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
        """The layer lock is held from now on. Creates an empty file if there is none."""
        with suppress(OSError):  # without a file there are no heartbeats, and others do not wait for long
            os.close(os.open(self._path(digest), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def touch(self, digests: Iterable[Digest]) -> None:
        """Send a heartbeat for these layer locks. Blocking."""
        for digest in digests:
            with suppress(OSError):
                os.utime(self._path(digest))

    def last_touched(self, digest: Digest) -> tuple[int, int] | None:
        """Changes as long as the holder of the layer lock lives. Costs a stat."""
        try:
            status = os.stat(self._path(digest))
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def truncate(self, digest: Digest) -> None:
        """Free the space of a blob that is not read any more. For the holder of the layer lock, which has the whole tar."""
        with suppress(OSError):
            os.truncate(self._path(digest), 0)

    def remove_if_empty(self, digest: Digest) -> None:
        """Remove the file if it is empty. For a holder that is about to release the layer lock."""
        with suppress(OSError):
            if not os.stat(self._path(digest)).st_size:
                os.unlink(self._path(digest))

    def files(self) -> list[tuple[str, os.stat_result]]:
        """All partial blobs: names in partial/ and their stat results, least recently written first."""
        found = []
        for name in filter(is_partial_blob, os.listdir(self._directory.partial)):
            with suppress(FileNotFoundError):
                found.append((name, os.stat(self._directory.partial + name)))
        return sorted(found, key=lambda each: each[1].st_mtime)

    def evict(self, name: str) -> bool:
        """Remove one, unless its layer is locked. Returns whether it is gone. Blocking. Raises OSError."""
        raw = bytes.fromhex(name.removeprefix(_PREFIX))
        with closing(Claims(self._directory.path / "claims")) as claims:
            if not claims.claim(raw):
                return False
            with suppress(FileNotFoundError):
                os.unlink(self._directory.partial + name)
        return True

    def remove_old(self) -> int:
        """Remove those that were not written for a day. Returns how many. Raises OSError."""
        now = time.time()
        return sum(self.evict(name) for name, status in self.files() if now - status.st_mtime > _MAX_AGE)

    def _path(self, digest: Digest) -> str:
        return f"{self._directory.partial}{_PREFIX}{to_raw(digest).hex()}"
