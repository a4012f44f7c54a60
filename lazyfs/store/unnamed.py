"""Temporary files without a name: nothing is left behind, whatever ends the process."""

from __future__ import annotations

import tempfile
from typing import IO

from lazyfs.errors import LocalError
from lazyfs.store.store_error import store_error


def unnamed_file(folder: str | None = None) -> IO[bytes]:
    """A file in `folder`, else in TMPDIR, that has no name and no buffer."""
    try:
        return tempfile.TemporaryFile(prefix="lazyfs-", buffering=0, dir=folder)
    except OSError as error:
        raise _no_room(error, folder) from error


def write(file: IO[bytes], data: bytes | memoryview, folder: str | None = None) -> None:
    """All of `data`, to a file in `folder`, else in TMPDIR. Raises LocalError where the disk does not take it."""
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
