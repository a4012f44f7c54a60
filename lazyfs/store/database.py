"""index.sqlite, open: one connection for reading, one for writing. All errors of sqlite are handled here.

A damaged index is discarded as a whole, together with the files that only it described. The process that finds the damage
starts an empty one; others see a new inode at their next transaction and reopen it. Whatever sqlite reports, a reader gets no
rows and a writer gets StoreFull or StoreUnusable.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs.errors import LocalError, StoreFull, StoreUnusable
from lazyfs.store import schema
from lazyfs.store.directory import INDEX_FILES, Directory
from lazyfs.store.store_error import store_error

_log = logging.getLogger("lazyfs.store")

_ROOM = 64
"""Blocks that sqlite needs at least to open the file."""

Failure = sqlite3.Error | UnicodeDecodeError
FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""What a call of sqlite can raise. A message that quotes damaged text may not be UTF-8, and then Python raises
UnicodeDecodeError instead.
"""

_PASSING = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_ERROR,
    }
)
"""Error codes that a sound index can cause: the disk, another process, memory. All others mean damage."""


class Database:
    """The index file, open. Any thread may call it."""

    def __init__(self, directory: Directory, *, on_loss: Callable[[], None]) -> None:
        """Open, create, migrate, or start over. Raises StoreUnusable (also for a newer format), StoreFull.

        `on_loss()` is called when the whole content of the index is lost.
        """
        self.writing = threading.RLock()
        """Held by a writer. It is taken before any other lock of this room."""
        self._directory = directory
        self._path = directory.path / INDEX_FILES[0]
        self._on_loss = on_loss
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._inode = 0
        self._closed = False
        self._read_failed = False
        self.generation = 0
        """Incremented each time the index is started over or reopened."""
        with directory.claims.opening():
            try:
                self._connect_or_start_over()
            except FAILURES as error:
                self._disconnect()
                raise _refused(error, f"the store {directory.path} cannot be opened", self._path) from error
            except LocalError:
                self._disconnect()
                raise

    def query(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """The rows that one statement finds; no rows when sqlite fails for any reason. Raises StoreUnusable once closed."""
        with self._reading:
            self._check_open()
            generation = self.generation
            if self._reader is None:
                return []
            try:
                found = self._reader.execute(sql, values).fetchall()
            except FAILURES as error:
                failure = error
            else:
                self._read_failed = False
                return found
        if _is_damage(failure):
            with self.writing:
                if self.generation == generation:
                    self.start_over(str(failure))
        elif not self._read_failed:
            self._read_failed = True
            _log.warning("the index of the store %s cannot be read: %s", self._directory.path, failure)
        return []

    def transact(self, work: Callable[[sqlite3.Connection], None], *, synced: bool = False) -> None:
        """Run one transaction, exclusive of all other writers. With `synced`, it is on disk on return. An exception of `work`
        rolls it back and is raised.

        Raises StoreFull, StoreUnusable. If the index turns out to be damaged, it is started over, and this returns.
        """
        with self.writing:
            self._check_open()
            self._join()
            try:
                self._commit(work, synced)
            except FAILURES as error:
                if not _is_damage(error):
                    raise _refused(
                        error, f"the index of the store {self._directory.path} cannot be written", self._path
                    ) from error
                self.start_over(str(error))

    def start_over(self, cause: str | None) -> None:
        """Replace a damaged index by an empty one, or (`cause` is None) open the one that another process made. The caller
        holds the write lock."""
        with self._reading, self._directory.claims.opening():
            self._disconnect()
            self.generation += 1
            self._on_loss()
            try:
                if cause is not None and self._is_current():
                    self._discard(cause)
                self._connect_or_start_over()
            except (*FAILURES, LocalError, OSError) as error:
                # Without an index, nothing is in the store, and nothing can be kept until a later transaction opens one.
                self._disconnect()
                _log.warning("the index of the store %s cannot be opened again: %s", self._directory.path, error)

    def close(self) -> None:
        """Close both connections. The last process to do so leaves a single file."""
        with self.writing, self._reading:
            self._closed = True
            self._disconnect()

    def _commit(self, work: Callable[[sqlite3.Connection], None], synced: bool) -> None:
        db = self._writer
        if db is None:
            raise StoreUnusable(f"the store {self._directory.path} has lost its index", hint="The log says why.")
        if synced:
            db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        try:
            work(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            if synced:
                db.execute(schema.SELDOM_SYNCED)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnusable(f"the store {self._directory.path} is closed")

    def _is_current(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def _join(self) -> None:
        """Another process may have started over. Then our file has no name any more, and nobody sees what we write to it."""
        if self._writer is None or not self._is_current():
            self.start_over(None)

    def _connect_or_start_over(self) -> None:
        try:
            self._connect()
        except FAILURES as error:
            if not _is_damage(error):
                raise
            self._discard(str(error))
            self._connect()

    def _connect(self) -> None:
        try:
            # sqlite would create it with the umask's mode. We never open an existing one ourselves: closing any descriptor of
            # it would drop the locks of this process's other connections (POSIX).
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise store_error(error, f"the store {self._directory.path} cannot be opened") from error
        self._inode = os.stat(self._path).st_ino
        self._writer = schema.connect(self._path)
        if schema.prepare(self._writer, self._directory):
            removed = self._directory.wipe()
            if removed:
                _log.warning("the store %s has %d files but no index: dropped", self._directory.path, removed)
        self._reader = schema.connect(self._path)

    def _discard(self, cause: str) -> None:
        self._disconnect()
        path = self._directory.path
        try:
            for name in INDEX_FILES:
                (path / name).unlink(missing_ok=True)
            removed = self._directory.wipe()
        except OSError as error:
            raise store_error(error, f"the damaged index of the store {path} cannot be removed") from error
        _log.warning("the index of the store %s is damaged (%s): starting empty, %d files dropped", path, cause, removed)

    def _disconnect(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None


def _is_damage(error: Failure) -> bool:
    if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return False  # a defect of ours must not cost the user the store
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _PASSING


def _refused(error: Failure, what: str, path: Path) -> LocalError:
    # If there is no room for its -shm file, sqlite reports an I/O error.
    full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    with suppress(OSError):  # the directory itself may be gone
        full = full or os.statvfs(path.parent).f_bavail < _ROOM
    if full:
        return StoreFull(f"{what}: {error}", hint="Free space, or name another directory with --store.")
    return StoreUnusable(f"{what}: {error}", hint="Name another directory with --store.")
