"""What must survive the daemon: which images are mounted where, and from which sources. STORE/state.sqlite.

A row is written before its mount exists and marked when it does; it goes when the kernel says that the mount is gone. So after a
crash at any moment each mount of ours has a row, and a row without a mount is only a leftover. Every change is
synced: there are few. Passwords are not kept: after a crash, the docker configuration must know them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from lazyfs.errors import StoreFull, StoreUnusable

FILE_NAME: Final = "state.sqlite"
_FORMAT: Final = 1
_APPLICATION: Final = 0x4C5A_5300
_SCHEMA: Final = """
CREATE TABLE mount (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    phase TEXT NOT NULL,
    trouble TEXT NOT NULL,
    mount BLOB NOT NULL
)
"""

Phase = Literal["mounting", "mounted", "detached"]
"""`detached`: it has left the tree of mounts, and lives on for those who use it."""


class Mount(msgspec.Struct, frozen=True):
    """What does not change about a mount. JSON in the database: a field that a later version adds has a default."""

    directory: str
    ticket: str
    image: str
    """As the kernel's table shows it, without `lazyfs:`: `HOST/REPO@sha256:…`."""
    reference: str
    """What was mounted, with the digest that a tag meant then."""
    platform: str
    plain_http: bool
    background: str
    upper: str
    volatile: bool
    record: str


class Row(msgspec.Struct, frozen=True):
    """One mount, and how far it has come."""

    number: int
    """Its own for ever: also that of its gate, where it records."""
    phase: Phase
    trouble: str
    """Why it does not work, where it does not."""
    mount: Mount


class State:
    """The open database. Blocking: for threads. A context manager."""

    def __init__(self, store: Path) -> None:
        """Raises StoreUnusable: it cannot be read, or is a newer one's."""
        self._path = store / FILE_NAME
        self._lock = threading.Lock()
        self._db = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._refusal(error) from error
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        if version == 0 and application == 0:
            with self._transaction() as db:
                db.execute(_SCHEMA)
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute(f"PRAGMA user_version = {_FORMAT}")
        elif application != _APPLICATION:
            raise sqlite3.DatabaseError("it is no state of lazyfsd")
        elif version > _FORMAT:
            raise StoreUnusable(
                f"{self._path} has format {version}, and this lazyfs knows formats up to {_FORMAT}", hint="Use a newer lazyfs"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No more calls after this one."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    def rows(self) -> tuple[Row, ...]:
        """All mounts, the oldest first. Raises StoreUnusable."""
        with self._lock, self._translated():
            found = self._db.execute("SELECT number, phase, trouble, mount FROM mount ORDER BY number").fetchall()
        return tuple(
            Row(number, phase, trouble, msgspec.json.decode(mount, type=Mount)) for number, phase, trouble, mount in found
        )

    def add(self, mount: Mount) -> Row:
        """A new mount, `mounting`. Raises StoreFull, StoreUnusable, as all that changes something."""
        values = (msgspec.json.encode(mount),)
        with self._transaction() as db:
            number = db.execute("INSERT INTO mount (phase, trouble, mount) VALUES ('mounting', '', ?)", values).lastrowid
        assert number is not None
        return Row(number, "mounting", "", mount)

    def mark(self, number: int, phase: Phase, trouble: str = "") -> None:
        """A mount has come so far."""
        with self._transaction() as db:
            db.execute("UPDATE mount SET phase = ?, trouble = ? WHERE number = ?", (phase, trouble, number))

    def remove(self, numbers: Sequence[int]) -> None:
        """These mounts are gone."""
        with self._transaction() as db:
            db.executemany("DELETE FROM mount WHERE number = ?", [(number,) for number in numbers])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.Error) -> StoreFull | StoreUnusable:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_NOTADB) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(f"{self._path} cannot be written: {error}", hint="Make room on that disk")
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return StoreUnusable(
                f"{self._path} is damaged: {error}",
                hint="Unmount what `lazyfs status` still shows with umount(8), and remove that file; nothing else is in it",
            )
        return StoreUnusable(f"{self._path} cannot be used: {error}")
