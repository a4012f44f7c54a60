"""A small durable sqlite file: every change is on disk when the call returns.

The store's index is different: it may lose its last rows, and can be rebuilt (store/database.py). This one must not lose
anything: which images are mounted, which snapshots containerd has.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from lazyfs.errors import StoreFull, StoreUnusable


class Kind(NamedTuple):
    """The kind of a file."""

    what: str
    """Name for messages."""
    application: int
    """sqlite's application_id."""
    format: int
    """The newest format that this version reads, and the one that it writes: sqlite's user_version."""
    tables: tuple[str, ...]
    """The statements that create a new file."""
    hint: str
    """What to do if the file is damaged."""


class SyncedDatabase:
    """The open file. Blocking; any thread may call it. A context manager.

    Raises StoreUnusable if the file cannot be used, and StoreFull if the disk is full. A row that cannot be decoded
    (msgspec.DecodeError) counts as damage.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        """Open or create the file. Also raises StoreUnusable for a newer format, another program's file, and a damaged one.

        The check for damage takes 50 ms for 300,000 rows.
        """
        self._path = path
        self._kind = kind
        self._lock = threading.Lock()
        with self._translated():
            with suppress(FileExistsError):  # sqlite would create it with the umask's mode
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. No calls may follow."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries."""
        with self._lock, self._translated():
            yield self._db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection within a transaction, which is synced at the end, or rolled back if the block raises."""
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        """Create the tables of a new file, or check an existing one."""
        db, kind = self._db, self._kind
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")  # rolled back with the connection, if anything fails
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if version == 0 and application == 0:
            for statement in kind.tables:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {kind.application}")
            db.execute(f"PRAGMA user_version = {kind.format}")
        elif application != kind.application:
            raise StoreUnusable(f"{self._path} does not contain {kind.what} of lazyfs", hint=kind.hint)
        elif version > kind.format:
            raise StoreUnusable(
                f"{self._path} has format {version}, and this lazyfs knows formats up to {kind.format}", hint="Use a newer lazyfs"
            )
        else:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                damage = sqlite3.DatabaseError(found)
                damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damage
        db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        except msgspec.DecodeError as error:
            raise self._damaged(error) from error
        except OSError as error:
            kind = StoreFull if error.errno == errno.ENOSPC else StoreUnusable
            raise kind(f"{self._path} cannot be created: {error.strerror}") from error

    def _refusal(self, error: sqlite3.Error) -> StoreFull | StoreUnusable:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(f"{self._path} cannot be written: {error}", hint="Free space on that disk")
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return self._damaged(error)
        return StoreUnusable(f"{self._path} cannot be used: {error}")

    def _damaged(self, error: Exception) -> StoreUnusable:
        return StoreUnusable(f"{self._path} is damaged: {error}", hint=self._kind.hint)
