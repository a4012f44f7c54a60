"""Temporary files without a name: nothing is left however the process ends."""

from __future__ import annotations

import tempfile
from typing import IO

from lazyfs.errors import LocalError
from lazyfs.store.store_error import store_error


def unnamed_file(folder: str | None = None) -> IO[bytes]:
    """An unnamed, unbuffered file in `folder`, or in TMPDIR."""
    try:
        return tempfile.TemporaryFile(prefix="lazyfs-", buffering=0, dir=folder)
    except OSError as error:
        raise _no_room(error, folder) from error


def write(file: IO[bytes], data: bytes | memoryview, folder: str | None = None) -> None:
    """Write all of `data` to a file in `folder`, or in TMPDIR. Raises LocalError if the disk does not take it."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise _no_room(error, folder) from error


def _no_room(error: OSError, folder: str | None) -> LocalError:
    if folder is not None:
        return store_error(error, f"temporary files in {folder}")
    return LocalError(
        f"temporary files in {tempfile.gettempdir()}: {error.strerror}", hint="Point TMPDIR to a directory with more space"
    )
