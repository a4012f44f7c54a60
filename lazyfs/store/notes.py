"""Small facts that no digest covers, but that save a request to the registry: where the TOC is in a blob, what a tag last
pointed to, which TOC lazyfs wrote for a layer without one.

A reader verifies what follows from a note, except for the last kind: there it trusts what the owner of the store wrote. A lost
or damaged note costs a round trip, or a layer that is fetched again, but never a wrong byte: a note carries a checksum, and one
that does not match counts as missing.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

from lazyfs.store.directory import Directory
from lazyfs.store.store_error import store_error

_MAX_NOTE = 4096


class Notes:
    """The directory notes/: one file per note, named by the hash of its key."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def note(self, key: str) -> str | None:
        """The value under `key`; None if there is none, or it is damaged."""
        try:
            with open(self._path(key), "rb") as file:
                checksumed = file.read(_MAX_NOTE)
        except OSError:
            return None
        checksum, _, value = checksumed.partition(b"\n")
        return value.decode() if checksum == _with_checksum(key, value) else None

    def keep(self, key: str, value: str) -> None:
        """Set the value of a note. Raises StoreFull, StoreUnusable; the old note stays then."""
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
