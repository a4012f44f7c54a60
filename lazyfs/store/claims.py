"""Claims: which process fetches which chunk.

A claim is a lock on one byte of the file `claims`, at the offset given by the first 62 bits of the chunk's digest. It costs one
system call, needs no cleanup, and ends with the process that holds it. Two chunks that share 62 bits only wait for each other.
The bytes above all digests are locks of the whole store: for opening or rebuilding it, for recovery after a power failure, and
for eviction.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.store.locks import lock, open_lock_file, try_lock, unlock

_OPENING = 1 << 62
_RECOVERING = _OPENING + 1
_EVICTING = _OPENING + 2

_RECOVERY_TIMEOUT = 900.0
"""Seconds. The holder reads and checks everything that may not have reached the disk."""


class Claims:
    """The claims file, open."""

    def __init__(self, path: Path) -> None:
        self._what = f"the store {path.parent}"
        self._fd = open_lock_file(str(path))

    def claim(self, digest: bytes) -> bool:
        """Try to claim the chunk for this process. Also True if this process holds the claim already."""
        return try_lock(self._fd, start=_offset(digest))

    def release(self, digest: bytes) -> None:
        """Let other processes fetch the chunk. Does nothing if the claim is not held."""
        unlock(self._fd, start=_offset(digest))

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Keep other processes from opening or rebuilding the store. Not reentrant."""
        with self._hold(_OPENING):
            yield

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """Keep other processes from using the store until recovery has found out what reached the disk."""
        with self._hold(_RECOVERING, _RECOVERY_TIMEOUT):
            yield

    @contextmanager
    def evicting(self) -> Iterator[bool]:
        """Yield whether this process may evict now. Only one process may at a time, because it alone knows which names it has
        announced."""
        alone = try_lock(self._fd, start=_EVICTING)
        try:
            yield alone
        finally:
            if alone:
                unlock(self._fd, start=_EVICTING)

    @contextmanager
    def _hold(self, place: int, timeout: float | None = None) -> Iterator[None]:
        lock(self._fd, self._what, start=place, timeout=timeout)
        try:
            yield
        finally:
            unlock(self._fd, start=place)

    def close(self) -> None:
        """Release all claims."""
        os.close(self._fd)


def _offset(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 2
