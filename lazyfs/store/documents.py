"""Manifests, configs and TOCs by sha256. With them, an image can be mounted again without a registry.

They are few, and everything else is trusted because of them: they are written with fsync and hashed at every read.
"""

from __future__ import annotations

import logging
import os

from lazyfs.errors import DigestMismatch
from lazyfs.format.digest import Digest, check
from lazyfs.store.directory import Directory
from lazyfs.store.store_error import store_error

_log = logging.getLogger("lazyfs.store")


class Documents:
    """The directory documents/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.damaged = 0
        """Documents that this process found damaged and removed."""

    def document(self, digest: Digest) -> bytes | None:
        """The document. None if it is not in the store, or was damaged and has been removed."""
        path = self._path(digest)
        try:
            with open(path, "rb") as file:
                data = file.read()
            check(data, digest, f"the stored document {path}")
        except FileNotFoundError:
            return None
        except (OSError, DigestMismatch) as error:
            _log.warning("dropped a damaged document: %s", error)
            self.damaged += 1
            self._remove(path)
            return None
        return data

    def keep(self, digest: Digest, data: bytes | bytearray) -> None:
        """Keep a document that hashes to `digest`. Raises StoreFull, StoreUnusable, and leaves nothing then."""
        temporary = self._directory.new_temporary()
        try:
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, self._path(digest))
            except OSError:
                self._remove(temporary)
                raise
        except OSError as error:
            raise store_error(error, f"document {digest} cannot be kept") from error

    def has(self, digest: Digest) -> bool:
        """Whether there is a file of that name, damaged or not."""
        return os.path.exists(self._path(digest))

    def drop(self, digest: Digest) -> None:
        """Remove a document that is not needed any more."""
        self._remove(self._path(digest))

    def digests(self) -> list[Digest]:
        """The digests of all documents."""
        return [Digest(f"sha256:{entry.name}") for entry in os.scandir(self._directory.documents)]

    def _path(self, digest: Digest) -> str:
        return self._directory.documents + digest[7:]

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            _log.debug("%s", error)
