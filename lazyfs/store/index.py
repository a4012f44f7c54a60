"""The index: which chunks are here, in sqlite, shared by all processes of the store.

A row is added when its bytes are in place, never before. Rows are buffered and committed together by a thread of the
index (every 50 ms or 256 rows): a cold read keeps thousands of small files a second, and a transaction each would cost more
than the files. This process sees its buffered rows at once. A process that dies takes its last 50 ms of rows along; the
bytes they spoke of are then fetched again.

Each transaction ends by looking at the files of several chunks that it touched: transactions are in a sequence, so
whichever process brings the last chunk sees all of the others' and makes the object.

A damaged index is given up whole, with the files that only it could explain (`_rebuild`). Until then, and whatever
sqlite says, a reader is told "not here". Every row is held against the content it is asked for, and its sums are seeded
with its digest (blocks.py), so a damaged row is at worst a missing one.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.errors import LocalError, StoreFull, StoreUnusable
from lazyfs.store import schema
from lazyfs.store.directory import INDEX_FILES, Directory, refusal
from lazyfs.store.rows import Buffer, Row, row_of, spells

_log = logging.getLogger("lazyfs.store")

_COMMIT_DELAY = 0.05
_COMMIT_ROWS = 256
_NAMES_A_QUERY = 1000
_ROOM = 64
"""Blocks that sqlite needs at the least to open."""
_PASSING = frozenset(
    {
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
"""What sqlite may say of a sound index: the disk, another process, memory. All else means that it is damaged."""


class Index:
    """The index, open. Any thread may call it."""

    def __init__(
        self,
        directory: Directory,
        *,
        completed: Callable[[str], None],
        given_up: Callable[[Row], None],
        settled: Callable[[], None],
    ) -> None:
        """Open, create, migrate or rebuild. Raises StoreUnusable (a newer format included), StoreFull.

        Called with the write lock held: `completed(name)` inside the transaction that has the last of an object's rows,
        `given_up(row)` when there is no room to commit a row, `settled()` after each attempt to commit.
        """
        self._directory = directory
        self._path = directory.path / INDEX_FILES[0]
        self._completed = completed
        self._given_up = given_up
        self._settled = settled
        self._writing = threading.RLock()
        self._reading = threading.Lock()
        self._buffer = Buffer()
        self._failure: LocalError | None = None
        self._closed = False
        self._generation = 0
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        with self._directory.claims.opening():
            self._connect_or_start_over()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._commit_now_and_then, name="lazyfs-index", daemon=True)
        self._thread.start()

    def row(self, name: str, position: int) -> Row | None:
        """The row of one chunk, as it is in the index: to be held against what is asked."""
        # The buffer first, here and below: a row leaves it only when it can be seen in sqlite.
        buffered = self._buffer.get(name, position)
        if buffered is not None:
            return buffered
        found = self._query(f"{schema.SELECT_ROW} WHERE object = ? AND position = ?", (name, position))
        return row_of(found[0]) if found else None

    def rows_with(self, digest: bytes) -> list[Row]:
        """Some rows of a chunk, wherever it lies."""
        buffered = self._buffer.with_digest(digest)
        if buffered is not None:
            return [buffered]
        return _rows(self._query(f"{schema.SELECT_ROW} WHERE digest = ? LIMIT 8", (digest,)))

    def rows_of(self, name: str) -> list[Row]:
        """All rows of one object, in order."""
        return _rows(self._query(f"{schema.SELECT_ROW} WHERE object = ? ORDER BY position", (name,)))

    def names(self) -> list[str]:
        """Every object that has rows, committed ones."""
        return [name for (name,) in self._query("SELECT DISTINCT object FROM chunk", ())]

    def held(self, name: str, first: int, last: int) -> dict[int, tuple[int, bytes]]:
        """(size, digest) of the chunks in [first, last) of one object that have rows."""
        buffered = [self._buffer.get(name, position) for position in range(first, last)] if self._buffer else []
        found = {
            position: (size, digest)
            for position, size, digest in self._query(
                "SELECT position, size, digest FROM chunk WHERE object = ? AND position >= ? AND position < ?",
                (name, first, last),
            )
        }
        found.update((row.position, (row.size, row.digest)) for row in buffered if row is not None)
        return found

    def held_many(self, names: Sequence[str]) -> dict[str, list[tuple[int, int, bytes]]]:
        """(position, size, digest) of every chunk of these objects that has a row; 3 µs a name."""
        buffered = self._buffer.rows()
        found: dict[str, list[tuple[int, int, bytes]]] = {}
        # Some at a time, so that a reader of one chunk does not wait for the whole answer.
        for at in range(0, len(names), _NAMES_A_QUERY):
            for name, *chunk in self._query(schema.SELECT_MANY, (json.dumps(names[at : at + _NAMES_A_QUERY]),)):
                found.setdefault(name, []).append(tuple(chunk))
        for row in buffered:
            found.setdefault(row.object, []).append((row.position, row.size, row.digest))
        return found

    def is_whole(self, name: str) -> bool:
        """Whether every chunk of an object of several has a committed row."""
        return spells(self._query(schema.SELECT_LIST, (name,)), name)

    def complete(self, name: str) -> None:
        """Make the object of several chunks if all its rows are here: for a commit that outlived its rename."""
        if self.is_whole(name):
            self.change(lambda db: self._complete(db, name))

    def size(self) -> int:
        """Bytes of all chunks that have committed rows."""
        found = self._query("SELECT total(size) FROM chunk", ())
        return int(found[0][0]) if found else 0

    def is_pending(self, digest: bytes) -> bool:
        """Whether a chunk is here that other processes cannot see yet, but will soon."""
        return self._buffer.with_digest(digest) is not None and self._failure is None

    def check_writable(self) -> None:
        """Raise what the last commit failed with, if it fails again: no use in keeping bytes without rows."""
        if self._failure is not None:
            self.change()

    def add(self, row: Row, chunks: int) -> None:
        """Note that a chunk of an object of `chunks` chunks is in place; with the last one the object is made."""
        self._buffer.add(row, chunks)
        if chunks > 1 and self._count(row.object) >= chunks:
            with suppress(LocalError):  # logged; the row waits with the others
                self.change()
        elif len(self._buffer) >= _COMMIT_ROWS:
            self._hurry.set()
        self._wake.set()

    def change(self, work: Callable[[sqlite3.Connection], None] | None = None) -> None:
        """One transaction, shut against all other writers: the buffered rows, then `work`.

        Raises StoreFull, StoreUnusable: `work` is undone then (not what it did to files). Rows stay buffered until sqlite takes
        them, but where there is no room, some are given up, and the room of their bytes taken for the rest. When the
        index turns out damaged it is rebuilt empty, and this returns: nothing is here any more.
        """
        with self._writing:
            if self._closed:
                raise StoreUnusable(f"the store {self._directory.path} is closed")
            try:
                self._rejoin()
                self._commit(work)
            except sqlite3.Error as error:
                if _is_damage(error):
                    self._rebuild(str(error))
                    return
                failure = _refused(error, f"the index of the store {self._directory.path} cannot be written", self._path)
                self._note_failure(failure)
                raise failure from error
            except LocalError as error:
                self._note_failure(error)
                raise
            else:
                self._failure = None
            finally:
                self._settled()

    def is_sound(self) -> bool:
        """Read all of the index and hold it against itself; a damaged one is rebuilt empty."""
        generation = self._generation
        verdict = self._query("PRAGMA integrity_check(1)", ())
        if verdict and verdict[0][0] != "ok":
            with self._writing:
                self._rebuild(str(verdict[0][0]))
        return self._generation == generation

    def close(self) -> None:
        """Commit what is buffered, and leave. Rows that cannot be committed are lost, with a warning."""
        with self._writing:
            if self._closed:
                return
            try:
                self.change()
            except LocalError as error:
                _log.warning("%d chunks are kept but not noted: %s", len(self._buffer), error)
            self._closed = True
        self._wake.set()
        self._hurry.set()
        self._thread.join()
        with self._writing, self._reading:
            self._disconnect()

    def _commit_now_and_then(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(_COMMIT_DELAY)
            self._wake.clear()
            self._hurry.clear()
            if self._closed:
                return
            with suppress(LocalError):  # logged; whoever keeps the next chunk is told
                self.change()

    def _note_failure(self, failure: LocalError) -> None:
        if self._failure is None:
            _log.warning("%s", failure)
        self._failure = failure

    def _commit(self, work: Callable[[sqlite3.Connection], None] | None) -> None:
        batch = self._buffer.rows()
        while True:
            try:
                self._transact(batch, work)
            except sqlite3.Error as error:
                if not (batch and _is_full(error)):
                    raise
                half = len(batch) // 2
                self._buffer.forget(batch[half:])
                for row in batch[half:]:
                    self._given_up(row)
                batch = batch[:half]
            else:
                self._buffer.forget(batch)
                return

    def _transact(self, batch: list[Row], work: Callable[[sqlite3.Connection], None] | None) -> None:
        db = self._writer
        if db is None:
            raise StoreUnusable(f"the store {self._directory.path} has lost its index", hint="The log tells why.")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(schema.INSERT, [msgspec.structs.astuple(row) for row in batch])
            for name in {row.object for row in batch}:
                chunks = self._buffer.length(name)
                if chunks > 1 and db.execute(schema.COUNT, (name,)).fetchone()[0] == chunks:
                    self._complete(db, name)
            if work is not None:
                work(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _complete(self, db: sqlite3.Connection, name: str) -> None:
        if spells(db.execute(schema.SELECT_LIST, (name,)).fetchall(), name):
            self._completed(name)

    def _count(self, name: str) -> int:
        committed = self._query(schema.COUNT, (name,))
        return (committed[0][0] if committed else 0) + sum(row.object == name for row in self._buffer.rows())

    def _query(self, sql: str, values: Sequence[object]) -> list[Any]:
        """The rows; none when sqlite fails, whatever the cause."""
        with self._reading:
            if self._closed:
                raise StoreUnusable(f"the store {self._directory.path} is closed")
            generation = self._generation
            if self._reader is None:
                return []
            try:
                return self._reader.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                failure = error
        if _is_damage(failure):
            with self._writing:
                if self._generation == generation:
                    self._rebuild(str(failure))
        else:
            _log.warning("the index of the store %s cannot be read: %s", self._directory.path, failure)
        return []

    def _rejoin(self) -> None:
        """Another process may have rebuilt the index: then ours is a file without a name, and nobody sees our rows."""
        try:
            same = os.stat(self._path).st_ino == self._inode
        except OSError:
            same = False
        if self._writer is None or not same:
            self._rebuild(None)

    def _rebuild(self, cause: str | None) -> None:
        """With the write lock: start over with an empty index, or with the one that another process has made meanwhile."""
        with self._reading, self._directory.claims.opening():
            self._disconnect()
            self._generation += 1
            self._buffer.forget(self._buffer.rows())
            try:
                if cause is not None and os.path.exists(self._path) and os.stat(self._path).st_ino == self._inode:
                    self._discard(cause)
                self._connect()
            except (sqlite3.Error, LocalError, OSError) as error:
                # No index: nothing is here, and nothing can be kept until a later change() finds one.
                self._disconnect()
                _log.warning("the index of the store %s cannot be opened again: %s", self._directory.path, error)

    def _discard(self, cause: str) -> None:
        self._disconnect()
        try:
            for name in INDEX_FILES:
                (self._directory.path / name).unlink(missing_ok=True)
            removed = self._directory.wipe()
        except OSError as error:
            raise refusal(error, f"the damaged index of the store {self._directory.path} cannot be removed") from error
        _log.warning(
            "the index of the store %s is damaged (%s): starting empty, %d files dropped", self._directory.path, cause, removed
        )

    def _connect(self) -> None:
        try:
            # sqlite would create it with the umask's mode. Never opened by us when it exists: closing any descriptor of
            # it would drop the locks of this process's other connections (POSIX).
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise refusal(error, f"the store {self._directory.path} cannot be opened") from error
        self._inode = os.stat(self._path).st_ino
        self._writer = schema.connect(self._path)
        if schema.prepare(self._writer, self._directory):
            removed = self._directory.wipe()
            if removed:
                _log.warning("the store %s had %d files but no index: dropped", self._directory.path, removed)
        self._reader = schema.connect(self._path)

    def _connect_or_start_over(self) -> None:
        what = f"the store {self._directory.path} cannot be opened"
        try:
            try:
                self._connect()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                self._discard(str(error))
                self._connect()
        except sqlite3.Error as error:
            self._disconnect()
            raise _refused(error, what, self._path) from error
        except LocalError:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None


def _rows(found: Iterable[Sequence[Any]]) -> list[Row]:
    return [row for row in map(row_of, found) if row is not None]


def _is_damage(error: sqlite3.Error) -> bool:
    if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return False
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in {*_PASSING, sqlite3.SQLITE_FULL}


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def _refused(error: sqlite3.Error, what: str, path: Path) -> LocalError:
    # Where there is no room for its -shm file, sqlite calls that an I/O error.
    if _is_full(error) or os.statvfs(path.parent).f_bavail < _ROOM:
        return StoreFull(f"{what}: {error}", hint="Make room, or name another directory with --store.")
    return StoreUnusable(f"{what}: {error}", hint="Name another directory with --store.")
