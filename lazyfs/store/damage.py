"""Drops chunks that are damaged or whose files are gone. No row stays without the bytes that it describes.

Files are removed or moved in the transaction that deletes their rows. The transaction is synced before the chunk can be fetched
again: otherwise a power failure could restore the old row, with its generation, for a new file that is not on disk. When many
files are gone at once (removed by hand), the first missing one makes the store check all of them, in one transaction instead of
thousands.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from contextlib import suppress

from lazyfs.errors import LocalError
from lazyfs.store.content import is_single
from lazyfs.store.directory import Directory
from lazyfs.store.files import Files
from lazyfs.store.index import Index
from lazyfs.store.open_files import OpenFiles
from lazyfs.store.rows import Row
from lazyfs.store.schema import DELETE, DELETE_ALL

_log = logging.getLogger("lazyfs.store")


class Damage:
    """Drops what is damaged or missing. Any thread may call it."""

    def __init__(self, directory: Directory, files: Files, index: Index, open_files: OpenFiles) -> None:
        self._directory = directory
        self._files = files
        self._index = index
        self._open = open_files
        self._counting = threading.Lock()
        self._undropped: set[str] = set()
        """Objects for which it was logged that they cannot be dropped."""
        self.damaged = 0
        """Chunks that this process has dropped."""

    def drop(self, row: Row, inode: int | None, cause: str) -> bool:
        """Drop a chunk that was found damaged in the file `inode` (None: there is no file). False if the name now belongs to
        another file.

        An object of several chunks becomes an unfinished file without the damaged chunk.
        """
        name = row.object
        found = self._files.find(name)
        if (found.inode if found else None) != inode:
            return False
        copy, lost = None, is_single(name)
        if found is not None and found.whole and not lost:
            try:
                copy = self._files.copy_without(found.path, row.offset, row.size)
            except OSError as error:
                cause, lost = f"{cause}; no copy without it: {error}", True
        dropped = stale = False

        def work(db: sqlite3.Connection) -> None:
            nonlocal dropped, stale
            if self._files.find(name) != found:
                stale = True
                return
            if lost:
                dropped = db.execute(DELETE_ALL, (name,)).rowcount > 0
            else:
                dropped = db.execute(DELETE, (name, row.position)).rowcount > 0
            if found is None:
                self._files.remove(name)  # if the file was removed by hand, its twin may be left
            elif found.whole:
                self._files.demote(name, copy)

        try:
            self._index.change(work, synced=True, removing=[name])
        except (LocalError, OSError) as error:
            dropped = False
            if name not in self._undropped:
                self._undropped.add(name)
                _log.warning("chunk %d of %s is damaged (%s) and cannot be dropped: %s", row.position, name, cause, error)
            self._index.void(self._index.rows_of(name) if lost else [row])
        finally:
            if copy is not None:
                self._files.discard(copy)
        if stale:
            return False
        self._open.forget(name)
        if dropped:
            _log.warning("dropped damaged chunk %d of %s: %s", row.position, name, cause)
            with self._counting:
                self.damaged += 1
        if found is None:
            self._drop_gone()
        return True

    def note_missing(self, name: str) -> None:
        """An object with a full set of rows is not where it should be. If its file is gone, others may be gone too."""
        if self._files.find(name) is None:
            self._drop_gone()

    def drop_if_gone(self, name: str) -> None:
        """Call this before creating the file of an object of several chunks: old rows of a removed file would describe holes in
        the new one.

        Raises StoreFull, StoreUnusable: there are such rows, and they cannot be dropped.
        """
        if self._files.find(name) is not None or not self._index.rows_of(name):
            return
        dropped = False

        def work(db: sqlite3.Connection) -> None:
            nonlocal dropped
            dropped = self._files.find(name) is None and db.execute(DELETE_ALL, (name,)).rowcount > 0

        self._index.change(work, synced=True, removing=[name])
        self._open.forget(name)
        if dropped:
            _log.warning("dropped %s from the index: its file is missing", name)

    def _drop_gone(self) -> None:
        """Drop all rows whose files are gone."""

        def work(db: sqlite3.Connection) -> None:
            for name in gone:
                if self._files.find(name) is None:
                    db.execute(DELETE_ALL, (name,))
                    self._files.remove(name)
                    self._open.forget(name)

        with suppress(LocalError, OSError):  # the next read of each one reports it again
            present = {name for folder in (self._directory.objects, self._directory.partial) for name in os.listdir(folder)}
            gone = [name for name in self._index.names() if name not in present]
            if gone:
                self._index.change(work, synced=True, removing=gone)
                _log.warning("dropped %d objects from the index: their files are missing", len(gone))
