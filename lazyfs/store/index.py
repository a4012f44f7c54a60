"""The index: which chunks are here, in sqlite, shared by all processes of the store.

A row is added when its bytes are in place, never before. Rows are buffered and committed together by a thread of the
index (every 50 ms or 256 rows): a cold read keeps thousands of small files a second, and a transaction each would cost more
than the files. This process sees its buffered rows at once. A process that dies takes its last 50 ms of rows along; the
bytes they spoke of are then fetched again.

Each commit ends by looking at the files of several chunks that it touched: transactions are in a sequence, so
whichever process brings the last chunk sees all of the others' and makes the object. No content is read for that, and a kernel
serves objects unchecked, so a row must never outlive its file: one whose file is another by now than its bytes were put
into is not committed, a file is removed only while nobody can commit, and before a file is made its old rows go.

A row that turns out untrue on a disk that is too full to take it out is void: as good as gone for this process, which takes it
out with the next commit that succeeds.

Every row is held against the content it is asked for, and its sums are seeded with its digest (blocks.py), so a damaged
row is at worst a missing one.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from lazyfs.errors import LocalError, StoreFull
from lazyfs.store import schema
from lazyfs.store.content import is_name, is_single
from lazyfs.store.database import Database
from lazyfs.store.directory import Directory
from lazyfs.store.rows import Buffer, Row, row_of, spells

_log = logging.getLogger("lazyfs.store")

_COMMIT_DELAY = 0.05
_COMMIT_ROWS = 256

Held = tuple[int, int, bytes]
"""Offset, size and digest of a chunk that has a row: what a content is held against."""


class Index:
    """The index, open. Any thread may call it. Once closed it raises StoreUnusable."""

    def __init__(
        self,
        directory: Directory,
        *,
        completed: Callable[[str], None],
        identity: Callable[[str], bytes],
        given_up: Callable[[Row], None],
        settled: Callable[[], None],
    ) -> None:
        """Open, create, migrate or rebuild. Raises StoreUnusable (a newer format included), StoreFull.

        Called with the write lock held: `completed(name)` inside the transaction that has the last of an object's rows,
        `identity(name)` for the file that an object lies in, `given_up(row)` when there is no room to commit a row, `settled()`
        after each attempt to commit.
        """
        self._completed = completed
        self._identity = identity
        self._given_up = given_up
        self._settled = settled
        self._buffer = Buffer()
        self._void: dict[str, set[int]] = {}
        """By object, the positions of rows that are not true and could not be taken out."""
        self._failure: LocalError | None = None
        self._closing = False
        self._database = Database(directory, lost=self._buffer.clear)
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
        if position in self._void.get(name, ()):
            return None
        found = self._database.query(schema.SELECT_ROW, (name, position))
        return row_of(found[0]) if found else None

    def rows_with(self, digest: bytes) -> list[Row]:
        """Some rows of a chunk, wherever it lies."""
        buffered = self._buffer.with_digest(digest)
        if buffered is not None:
            return [buffered]
        return self._valid(_sound(self._database.query(schema.SELECT_SAME, (digest,))))

    def known(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of the chunks that have a row somewhere, which may be void."""
        known = {digest for digest in digests if self._buffer.with_digest(digest) is not None}
        for at in range(0, len(digests), schema.DIGESTS_A_QUERY):
            some = digests[at : at + schema.DIGESTS_A_QUERY]
            padded = (*some, *[b""] * (schema.DIGESTS_A_QUERY - len(some)))  # one statement, which sqlite has compiled
            known.update(digest for (digest,) in self._database.query(schema.SELECT_KNOWN, padded))
        return known

    def rows_of(self, name: str) -> list[Row]:
        """All committed rows of one object, in order, also those that are void."""
        return _sound(self._database.query(schema.SELECT_ROWS, (name,)))

    def names(self) -> list[str]:
        """Every object that has committed rows."""
        return _names(self._database.query("SELECT DISTINCT object FROM chunk"))

    def younger(self, limit: int) -> list[str]:
        """Objects with committed rows that are younger than the last durable generation, at most `limit` (-1: all)."""
        return _names(self._database.query(schema.SELECT_YOUNGER, (limit,)))

    def size(self) -> int:
        """Bytes of all chunks that have committed rows."""
        found = self._database.query("SELECT total(size) FROM chunk")
        return int(found[0][0]) if found else 0

    def blocks(self) -> int:
        """Bytes that all chunks with committed rows take on disk, in blocks of 4 KiB."""
        found = self._database.query(schema.SUM_BLOCKS)
        return int(found[0][0] or 0) if found else 0

    def usage(self, names: Sequence[str]) -> tuple[int, int]:
        """How many of these objects have committed rows, and the bytes that they take on disk; 3 µs a name, in one query."""
        found = self._database.query(schema.SUM_BLOCKS_OF, (json.dumps(names),))
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)

    def arrivals(self, last: tuple[int, str, int], limit: int) -> list[Any]:
        """The next rows after `last`, in the order of their commits, as they are: generation, object, position."""
        return self._database.query(schema.SELECT_ARRIVALS, (*last, limit))

    def held(self, name: str, first: int, last: int) -> dict[int, Held]:
        """The chunks in [first, last) of one object that have rows, by position."""
        buffered = [self._buffer.get(name, position) for position in range(first, last)] if self._buffer else []
        found = {
            position: (offset, size, digest)
            for position, offset, size, digest in self._database.query(schema.SELECT_HELD, (name, first, last))
            if position not in self._void.get(name, ())
        }
        found.update((row.position, (row.offset, row.size, row.digest)) for row in buffered if row is not None)
        return found

    def held_many(self, names: Sequence[str]) -> dict[str, dict[int, Held]]:
        """The chunks of each of these objects that have rows, by position; 3 µs a name, in one query."""
        buffered = self._buffer.rows()
        found: dict[str, dict[int, Held]] = {}
        for name, position, offset, size, digest in self._database.query(schema.SELECT_MANY, (json.dumps(names),)):
            if position not in self._void.get(name, ()):
                found.setdefault(name, {})[position] = (offset, size, digest)
        wanted = set(names)
        for row in buffered:
            if row.object in wanted:
                found.setdefault(row.object, {})[row.position] = (row.offset, row.size, row.digest)
        return found

    def is_whole(self, name: str) -> bool:
        """Whether every chunk of an object of several has a committed row."""
        return name not in self._void and spells(self._database.query(schema.SELECT_LIST, (name,)), name)

    def complete(self, name: str) -> None:
        """Make the object of several chunks if all its rows are here: for a commit that outlived its rename."""
        if self.is_whole(name):
            self.change(lambda db: self._complete(db, name))

    def is_pending(self, digest: bytes) -> bool:
        """Whether a chunk is here that other processes cannot see yet, but will soon."""
        return self._buffer.with_digest(digest) is not None and self._failure is None

    def check_writable(self) -> None:
        """Raise what the last commit failed with, if it fails again: no use in keeping bytes without rows."""
        if self._failure is not None:
            self.change()

    def add(self, row: Row, chunks: int, file: bytes) -> None:
        """Note that a chunk of an object of `chunks` chunks is in place, in `file`; with the last one the object is made."""
        self._buffer.add(row, chunks, file)
        if chunks > 1 and self._count(row.object) >= chunks:
            with suppress(LocalError):  # logged; the row waits with the others
                self.change()
        elif len(self._buffer) >= _COMMIT_ROWS:
            self._hurry.set()
        self._wake.set()

    def fact(self, name: str) -> int | str | None:
        """What is noted of the store as a whole (schema.py); None when sqlite fails."""
        found = self._database.query(schema.SELECT_FACT, (name,))
        return found[0][0] if found and isinstance(found[0][0], int | str) else None

    def change(self, work: Callable[[sqlite3.Connection], None] | None = None, *, synced: bool = False) -> None:
        """Commit the buffered rows and, in the same transaction, `work`. `synced`: it is on disk when this returns.

        Raises StoreFull, StoreUnusable: `work` is undone then (not what it did to files). Rows stay buffered until sqlite takes
        them, but where there is no room, some are given up, and the room of their bytes taken for the rest. When the
        index turns out damaged it is started over, and this returns: nothing is here any more.
        """
        with self._database.writing:
            batch = self._buffer.rows()
            try:
                while True:
                    try:
                        self._commit(batch, work, synced)
                        break
                    except StoreFull:
                        if not batch:
                            raise
                        batch = self._give_up_half(batch)
            except LocalError as error:
                if self._failure is None:
                    _log.warning("%s", error)
                self._failure = error
                raise
            else:
                self._failure = None
            finally:
                self._settled()

    def void(self, rows: Iterable[Row]) -> None:
        """Rows that are not true, and that there is no room to take out."""
        with self._database.writing:
            for row in rows:
                self._void.setdefault(row.object, set()).add(row.position)

    def if_unnoted(self, name: str, action: Callable[[], None]) -> None:
        """Do something where an object has no rows, committed or waiting, and while no process can commit one."""

        def work(db: sqlite3.Connection) -> None:
            if not (self._buffer.has(name) or db.execute(schema.COUNT, (name,)).fetchone()[0]):
                action()

        with suppress(LocalError):  # logged by the next commit
            self._database.transact(work)

    def is_sound(self) -> bool:
        """Read all of the index and hold it against itself; a damaged one is started over."""
        generation = self._database.generation
        verdict = self._database.query("PRAGMA integrity_check(1)")
        if verdict and verdict[0][0] != "ok":
            with self._database.writing:
                self._database.start_over(str(verdict[0][0]))
        return self._database.generation == generation

    def close(self) -> None:
        """Commit what is buffered, and leave. Rows that cannot be committed are lost; the log tells why."""
        self._closing = True
        self._wake.set()
        self._hurry.set()
        self._thread.join()
        with suppress(LocalError):
            self.change()
        self._database.close()

    def _commit_now_and_then(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._hurry.wait(_COMMIT_DELAY)
            self._wake.clear()
            self._hurry.clear()
            with suppress(LocalError):  # logged; whoever keeps the next chunk is told
                self.change()

    def _commit(self, batch: list[Row], work: Callable[[sqlite3.Connection], None] | None, synced: bool) -> None:
        def transaction(db: sqlite3.Connection) -> None:
            generation = schema.number(db, "generation")
            db.executemany(schema.DELETE, [(name, position) for name, positions in self._void.items() for position in positions])
            true = [row for row in batch if is_single(row.object) or self._is_in_place(row)]
            db.executemany(schema.INSERT, [(*msgspec.structs.astuple(row), generation) for row in true])
            for name in {row.object for row in true}:
                chunks = self._buffer.length(name)
                if chunks > 1 and db.execute(schema.COUNT, (name,)).fetchone()[0] == chunks:
                    self._complete(db, name)
            if work is not None:
                work(db)

        self._database.transact(transaction, synced=synced)
        self._void.clear()
        self._buffer.forget(batch)

    def _give_up_half(self, batch: list[Row]) -> list[Row]:
        half = len(batch) // 2
        self._buffer.forget(batch[half:])
        for row in batch[half:]:
            self._given_up(row)
        return batch[:half]

    def _complete(self, db: sqlite3.Connection, name: str) -> None:
        if spells(db.execute(schema.SELECT_LIST, (name,)).fetchall(), name):
            self._completed(name)

    def _is_in_place(self, row: Row) -> bool:
        """Whether the file that the row's bytes were put into is the object's still."""
        file = self._buffer.file(row)
        try:
            return file != b"" and self._identity(row.object) == file
        except OSError as error:
            _log.warning("%s cannot be looked at: %s", row.object, error)
            return False

    def _valid(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.position not in self._void.get(row.object, ())]

    def _count(self, name: str) -> int:
        committed = self._database.query(schema.COUNT, (name,))
        return (committed[0][0] if committed else 0) + sum(row.object == name for row in self._buffer.rows())


def _sound(found: Iterable[Sequence[Any]]) -> list[Row]:
    return [row for row in map(row_of, found) if row is not None]


def _names(found: Iterable[Sequence[Any]]) -> list[str]:
    return [name for (name,) in found if isinstance(name, str) and is_name(name)]
