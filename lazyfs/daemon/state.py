"""The state that must survive lazyfsd: which images are mounted where, and their sources. STORE/state.sqlite.

A row is written before its mount exists and marked when it does; it is removed when the kernel reports the unmount. So after a crash at any
moment each mount has a row, and a row without a mount is only a leftover. Every change is synced: there are few. Passwords are not
stored: after a crash, the docker configuration must have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from lazyfs.database import Kind, SyncedDatabase

FILE_NAME: Final = "state.sqlite"
_TABLE: Final = """
CREATE TABLE mount (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    phase TEXT NOT NULL,
    trouble TEXT NOT NULL,
    mount BLOB NOT NULL
)
"""
_MOUNTS: Final = Kind(
    what="mounts",
    application=0x4C5A_5300,
    format=1,
    tables=(_TABLE,),
    hint="Unmount what `lazyfs status` still shows with umount(8), and remove that file; nothing else is in it",
)

Phase = Literal["mounting", "mounted", "detached"]
"""`detached`: lazily unmounted, but still in use."""


class MountRecord(msgspec.Struct, frozen=True):
    """The constant properties of a mount. JSON in the database: fields added by later versions have defaults."""

    directory: str
    ticket: str
    image: str
    """As in the mount table, without `lazyfs:`: `HOST/REPO@sha256:…`."""
    reference: str
    """What was mounted, with the digest that the tag named then."""
    platform: str
    plain_http: bool
    background: str
    upper: str
    volatile: bool
    record: str


class Row(msgspec.Struct, frozen=True):
    """A mount and its phase."""

    number: int
    """Never reused; also the number of its recording in the gate."""
    phase: Phase
    trouble: str
    """Why it does not work; empty if it does."""
    mount: MountRecord


class State(SyncedDatabase):
    """The open database. Blocking, thread-safe. A context manager."""

    def __init__(self, store: Path) -> None:
        """Raises StoreUnusable if it cannot be read, or has a newer format."""
        super().__init__(store / FILE_NAME, _MOUNTS)

    def rows(self) -> tuple[Row, ...]:
        """All mounts, the oldest first. Raises StoreUnusable."""
        with self.reading() as db:
            found = db.execute("SELECT number, phase, trouble, mount FROM mount ORDER BY number")
            return tuple(
                Row(number, phase, trouble, msgspec.json.decode(mount, type=MountRecord))
                for number, phase, trouble, mount in found
            )

    def add(self, mount: MountRecord) -> Row:
        """Add a mount in phase `mounting`. Raises StoreFull, StoreUnusable, as every change."""
        values = (msgspec.json.encode(mount),)
        with self.transaction() as db:
            number = db.execute("INSERT INTO mount (phase, trouble, mount) VALUES ('mounting', '', ?)", values).lastrowid
        assert number is not None
        return Row(number, "mounting", "", mount)

    def mark(self, number: int, phase: Phase, trouble: str = "") -> None:
        """Set the phase and the trouble of a mount."""
        with self.transaction() as db:
            db.execute("UPDATE mount SET phase = ?, trouble = ? WHERE number = ?", (phase, trouble, number))

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove the rows of these mounts."""
        with self.transaction() as db:
            db.executemany("DELETE FROM mount WHERE number = ?", [(number,) for number in numbers])
