"""Manifests, configs and TOCs by their sha256: what mounts an image again without a registry.

They are few, and everything else is believed because of them: written with fsync, hashed at every read.
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
    """The folder documents/."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.damaged = 0
        """Found damaged by this process, and removed."""

    def document(self, digest: Digest) -> bytes | None:
        """The document, or None: not here, or damaged (then it is removed)."""
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
        """Keep a document that hashes to `digest`. Raises StoreFull, StoreUnusable: nothing is left then."""
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
        """Remove a document that nobody will ask for."""
        self._remove(self._path(digest))

    def digests(self) -> list[Digest]:
        """Of every document here."""
        return [Digest(f"sha256:{entry.name}") for entry in os.scandir(self._directory.documents)]

    def _path(self, digest: Digest) -> str:
        return self._directory.documents + digest[7:]

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:
            _log.debug("%s", error)
