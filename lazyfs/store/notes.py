"""Small facts that no digest vouches for, but that save a question to the registry: where a blob's TOC begins, what a tag last meant,
which TOC we wrote of a layer that has none.

Whoever reads a note checks what follows from it, but for the last: there he believes what this store's owner wrote. A lost or
damaged note costs a round trip, or a layer that is fetched again, never a wrong byte: a note carries its own checksum, and
one that does not match is not there.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

from lazyfs.store.directory import Directory
from lazyfs.store.store_error import store_error

_MAX_NOTE = 4096


class Notes:
    """The folder notes/: one file a note, named by the hash of its key."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def note(self, key: str) -> str | None:
        """What was noted under `key`; None when nothing was, or it is damaged."""
        try:
            with open(self._path(key), "rb") as file:
                checksumed = file.read(_MAX_NOTE)
        except OSError:
            return None
        checksum, _, value = checksumed.partition(b"\n")
        return value.decode() if checksum == _with_checksum(key, value) else None

    def keep(self, key: str, value: str) -> None:
        """Note `value`, in place of what was noted before. Raises StoreFull, StoreUnusable: the old note stays then."""
        temporary = self._directory.new_temporary()
        data = value.encode()
        try:
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(fd, "wb") as file:
                    file.write(_with_checksum(key, data) + b"\n" + data)
                os.rename(temporary, self._path(key))
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise store_error(error, f"a note about {key} cannot be kept") from error

    def _path(self, key: str) -> str:
        return self._directory.notes + hashlib.sha256(key.encode()).hexdigest()


def _with_checksum(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).hexdigest().encode()
