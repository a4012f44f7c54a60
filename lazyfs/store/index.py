"""The index: which chunks are in the store. A sqlite file that all processes of the store share.

A row is added only after its bytes are in place. A thread of the index commits buffered rows together, every 50 ms or 256 rows:
a cold read keeps thousands of small files a second, and a transaction for each would cost more than the files. This process
sees its buffered rows at once. A process that dies loses the rows of its last 50 ms, and their bytes are fetched again.

At its end, each commit looks for the first gap of the files of several chunks that it touched (gaps.py). Transactions are
serialised, so whichever process commits the last chunk sees the rows of all others and creates the object. No content is read
for that, and the kernel serves objects unchecked, so no row may outlive its file: a row whose file has been replaced is not
committed, a file is removed only while nobody can commit, and old rows are deleted before a file is created.

A row that is wrong, but cannot be deleted because the disk is full, is void: this process ignores it, and deletes it with its
next successful commit.

Every row is compared with the content that is asked for, and its checksums are seeded with its digest (blocks.py), so a damaged
row counts as missing at worst.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from lazyfs.errors import LocalError, StoreFull
from lazyfs.store import schema
from lazyfs.store.content import is_single
from lazyfs.store.database import Database
from lazyfs.store.directory import Directory
from lazyfs.store.disk_usage import DiskUsage
from lazyfs.store.gaps import Gaps
from lazyfs.store.index_reader import IndexReader
from lazyfs.store.rows import Buffer, Row, is_list_of
from lazyfs.store.tally import Tallies

_log = logging.getLogger("lazyfs.store")

_COMMIT_DELAY = 0.05
_COMMIT_ROWS = 256
_BLOCK = 4096


class Index(IndexReader):
    """The index, open. Any thread may call it. Raises StoreUnusable once closed."""

    def __init__(
        self,
        directory: Directory,
        *,
        completed: Callable[[str], None],
        identity: Callable[[str], bytes],
        given_up: Callable[[Row], None],
        after_commit: Callable[[], None],
    ) -> None:
        """Open, create, migrate or rebuild. Raises StoreUnusable (also for a newer format), StoreFull.

        These are called with the write lock held: `completed(name)` inside the transaction that adds the last row of an object,
        `identity(name)` for the file of an object, `given_up(row)` when there is no room to commit a row, `after_commit()`
        after each attempt to commit, successful or not.
        """
        self._completed = completed
        self._identity = identity
        self._given_up = given_up
        self._after_commit = after_commit
        self._buffer = Buffer()
        self._void: dict[str, set[int]] = {}
        """Positions of wrong rows that could not be deleted, by object."""
        self._failure: LocalError | None = None
        self._closing = False
        self._arriving = Gaps()
        """Of all rows, including uncommitted ones."""
        self._committed = Gaps()
        self.tallies = Tallies()
        self._removals = 0
        """The index's count of removals, as far as this process has seen it."""
        self._used = DiskUsage(self.count_blocks, self.version)
        self._database = Database(directory, on_loss=self._forget_everything)
        self._wake = threading.Event()
        self._commit_now = threading.Event()
        self._thread = threading.Thread(target=self._commit_loop, name="lazyfs-index", daemon=True)
        self._thread.start()

    def has_gap(self, name: str, chunks: int) -> bool:
        """Whether one of the object's chunks has no row. Costs one row if the last known gap is still there. False is a hint:
        rows may have been deleted since."""
        return self._first_gap(name, chunks) < chunks

    def note_gap(self, name: str, position: int) -> None:
        """Record that a chunk is missing, whatever `has_gap` says."""
        self._arriving.set(name, position)

    def is_whole(self, name: str) -> bool:
        """Whether every chunk of an object of several chunks has a committed row."""
        return name not in self._void and is_list_of(self._database.query(schema.SELECT_LIST, (name,)), name)

    def complete(self, name: str) -> None:
        """Create the object of several chunks if all its rows exist: for a rename that did not happen, or was lost, after the
        commit."""
        if self.is_whole(name):
            self.change(lambda db: self._complete(db, name))

    def is_pending(self, digest: bytes) -> bool:
        """Whether a chunk is in the store but not yet visible to other processes."""
        return self._buffer.with_digest(digest) is not None and self._failure is None

    def check_writable(self) -> None:
        """Raise the error of the last commit if it still occurs: keeping bytes without rows is useless."""
        if self._failure is not None:
            self.change()

    def add(self, row: Row, chunks: int, file: bytes) -> None:
        """Record that a chunk of an object of `chunks` chunks is in place, in `file`. The last chunk creates the object."""
        self._buffer.add(row, chunks, file)
        self.tallies.arrived(row.object, row.position)
        if chunks > 1 and self._fills_the_last_gap(row, chunks):
            with suppress(LocalError):  # logged; the row waits with the others
                self.change()
        elif len(self._buffer) >= _COMMIT_ROWS:
            self._commit_now.set()
        self._wake.set()

    def version(self) -> tuple[int, ...]:
        """A new value after every commit of any process."""
        found = self._database.query("PRAGMA data_version")
        return (self._database.generation, *(found[0] if found else ()))

    def check_removals(self) -> None:
        """Invalidate the tallies if another process has deleted rows."""
        removals = self.fact("removals")
        if isinstance(removals, int) and removals > self._removals:
            self._removals = removals
            self.tallies.invalidate_all()

    def blocks(self) -> int:
        """Disk space of all chunks with committed rows, in bytes of whole 4 KiB blocks; cached, see disk_usage.py."""
        return self._used.measure()

    def change(
        self,
        work: Callable[[sqlite3.Connection], object] | None = None,
        *,
        synced: bool = False,
        removing: Sequence[str] = (),
    ) -> None:
        """Commit the buffered rows, and run `work` in the same transaction. With `synced`, it is on disk on return. `removing`
        names the objects whose rows `work` deletes or restores.

        Raises StoreFull, StoreUnusable: `work` is rolled back then (but not what it did to files). Rows stay buffered until
        sqlite accepts them; if there is no room, some are given up, and the space of their bytes is used for the rest. If the
        index turns out to be damaged, it is started over, and this returns: the store is empty then.
        """
        with self._database.writing:
            batch = self._buffer.rows()
            try:
                while True:
                    try:
                        self._commit(batch, work, synced, removing)
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
                self._after_commit()

    def void(self, rows: Iterable[Row]) -> None:
        """Mark rows as wrong that cannot be deleted, because there is no room for that."""
        with self._database.writing:
            for row in rows:
                self._void.setdefault(row.object, set()).add(row.position)
                self._announce_removal([row.object])

    def if_no_rows(self, name: str, action: Callable[[], None]) -> None:
        """Call `action` if an object has no rows, committed or buffered, and while no process can commit one."""

        def work(db: sqlite3.Connection) -> None:
            if not (self._buffer.has(name) or db.execute(schema.SELECT_ANY, (name,)).fetchone()):
                action()

        with suppress(LocalError):  # the next commit logs it
            self._database.transact(work)

    def is_sound(self) -> bool:
        """Run sqlite's integrity check over the whole index. A damaged one is started over."""
        generation = self._database.generation
        verdict = self._database.query("PRAGMA integrity_check(1)")
        if verdict and verdict[0][0] != "ok":
            with self._database.writing:
                self._database.start_over(str(verdict[0][0]))
        return self._database.generation == generation

    def close(self) -> None:
        """Commit what is buffered, and close. Rows that cannot be committed are lost, and the log says why."""
        self._closing = True
        self._wake.set()
        self._commit_now.set()
        self._thread.join()
        with suppress(LocalError):
            self.change()
        self._database.close()

    def _commit_loop(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._commit_now.wait(_COMMIT_DELAY)
            self._wake.clear()
            self._commit_now.clear()
            with suppress(LocalError):  # logged; the caller that keeps the next chunk gets the error
                self.change()

    def _commit(
        self,
        batch: list[Row],
        work: Callable[[sqlite3.Connection], object] | None,
        synced: bool,
        removing: Sequence[str],
    ) -> None:
        lost: list[str] = []
        added = 0

        def transaction(db: sqlite3.Connection) -> None:
            generation = schema.number(db, "generation")
            db.executemany(schema.DELETE, [(name, position) for name, positions in self._void.items() for position in positions])
            nonlocal added
            true = self._in_place(batch)
            added = sum(-(-row.size // _BLOCK) * _BLOCK for row in true)
            db.executemany(schema.INSERT, [(*msgspec.structs.astuple(row), generation) for row in true])
            for name in {row.object for row in true}:
                self._complete_if_whole(db, name, self._buffer.length(name))
            if work is not None:
                work(db)
            lost.extend({*removing, *self._void})
            if lost:
                self._count_removal(db)
            if len(true) < len(batch):
                lost.extend({row.object for row in batch})

        known = self._removals
        try:
            self._database.transact(transaction, synced=synced)
        except BaseException:
            self._committed.clear()  # it includes rows that were rolled back
            self._removals = min(known, self._removals)
            raise
        self._void.clear()
        self._buffer.forget(batch)
        self._used.add(added)
        if lost:
            self._announce_removal(lost)

    def _count_removal(self, db: sqlite3.Connection) -> None:
        """Count a removal for the tallies of other processes, and find out whether another process has removed something."""
        found = db.execute(schema.SELECT_FACT, ("removals",)).fetchone()
        removals = found[0] if found and isinstance(found[0], int) else 0
        if removals > self._removals:
            self.tallies.invalidate_all()
        self._removals = removals + 1
        db.execute(schema.SET_FACT, ("removals", self._removals))

    def _announce_removal(self, names: Sequence[str]) -> None:
        self._used.forget()
        for name in names:
            self._forget_gaps(name)
        self.tallies.invalidate(names)

    def _give_up_half(self, batch: list[Row]) -> list[Row]:
        half = len(batch) // 2
        self._buffer.forget(batch[half:])
        self._announce_removal([row.object for row in batch[half:]])
        for row in batch[half:]:
            self._given_up(row)
        return batch[:half]

    def _fills_the_last_gap(self, row: Row, chunks: int) -> bool:
        """Whether the object is complete, as far as known, now that `row` is buffered."""
        name = row.object
        first = self._arriving.at(name)
        if first is not None and row.position > first:
            return False
        if first is not None and row.position < first:
            self._arriving.set(name, row.position)  # it was in the store before, and was lost
        return self._first_gap(name, chunks) == chunks

    def _first_gap(self, name: str, chunks: int) -> int:
        while True:
            first = self._arriving.look(name, chunks, partial(self._here, name))
            # Another thread may have filled it after it was read from the index.
            if first == chunks or self._buffer.get(name, first) is None:
                return first

    def _here(self, name: str, first: int, last: int) -> list[int]:
        """The positions in [first, last) that have rows, in order."""
        found = {position for position in range(first, last) if self._buffer.get(name, position) is not None}
        if len(found) < last - first:
            found.update(position for (position,) in self._database.query(schema.SELECT_POSITIONS, (name, first, last)))
        return sorted(found)

    def _complete_if_whole(self, db: sqlite3.Connection, name: str, chunks: int) -> None:
        if chunks < 2:
            return

        def committed(first: int, last: int) -> list[int]:
            return [position for (position,) in db.execute(schema.SELECT_POSITIONS, (name, first, last))]

        if self._committed.look(name, chunks, committed) < chunks or self._complete(db, name):
            return
        # Another process has deleted rows before the gap.
        self._committed.forget(name)
        self.note_gap(name, self._committed.look(name, chunks, committed))

    def _complete(self, db: sqlite3.Connection, name: str) -> bool:
        whole = is_list_of(db.execute(schema.SELECT_LIST, (name,)).fetchall(), name)
        if whole:
            self._completed(name)
            self._forget_gaps(name)
        return whole

    def _forget_gaps(self, name: str) -> None:
        self._committed.forget(name)
        self._arriving.forget(name)

    def _forget_everything(self) -> None:
        """The content of the index is lost."""
        self._buffer.clear()
        self._committed.clear()
        self._arriving.clear()
        self._removals = 0
        self._used.forget()
        self.tallies.invalidate_all()

    def _in_place(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose bytes were written to the file that the object has now."""
        now: dict[str, bytes] = {}
        for row in rows:
            if row.object not in now and not is_single(row.object):
                try:
                    now[row.object] = self._identity(row.object)
                except OSError as error:
                    _log.warning("cannot stat %s: %s", row.object, error)
                    now[row.object] = b""
        return [row for row in rows if is_single(row.object) or self._buffer.file(row) == now[row.object] != b""]
