"""Claims: who is fetching which chunk, across processes.

A claim is a lock on one byte of the file `claims`, at the offset that the first 62 bits of the chunk's digest spell. It
costs a system call, needs no cleaning up, and is gone with the process that held it. Two chunks that share 62 bits
only wait for each other. Bytes beyond all digests are locks of the store as a whole: under which it is opened or rebuilt,
settled after a power cut, or relieved of what there is no room for.
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
"""Seconds: what may not have reached the disk is read and checked meanwhile."""


class Claims:
    """The claims file, open."""

    def __init__(self, path: Path) -> None:
        self._what = f"the store {path.parent}"
        self._fd = open_lock_file(str(path))

    def claim(self, digest: bytes) -> bool:
        """Whether the chunk is now this process's to fetch. True again for what it already holds."""
        return try_lock(self._fd, start=_offset(digest))

    def release(self, digest: bytes) -> None:
        """Let others fetch the chunk, held or not."""
        unlock(self._fd, start=_offset(digest))

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Hold off every other process that opens or rebuilds the store. Not to be entered twice at once."""
        with self._hold(_OPENING):
            yield

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """Hold off every other process that wants to use the store before it is known what of it reached the disk."""
        with self._hold(_RECOVERING, _RECOVERY_TIMEOUT):
            yield

    @contextmanager
    def evicting(self) -> Iterator[bool]:
        """Yield whether this process may now remove what there is no room for: one at a time, it knows what it has answered for."""
        alone = try_lock(self._fd, start=_EVICTING)
        try:
            yield alone
        finally:
            if alone:
                unlock(self._fd, start=_EVICTING)

    @contextmanager
    def _hold(self, place: int, patience: float | None = None) -> Iterator[None]:
        lock(self._fd, self._what, start=place, patience=patience)
        try:
            yield
        finally:
            unlock(self._fd, start=place)

    def close(self) -> None:
        """Let go of everything."""
        os.close(self._fd)


def _offset(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 2
