"""What must survive the daemon: which images are mounted where, and from which sources. STORE/state.sqlite.

A row is written before its mount exists and marked when it does; it goes when the kernel says that the mount is gone. So after a
crash at any moment each mount of ours has a row, and a row without a mount is only a leftover. Every change is
synced: there are few. Passwords are not kept: after a crash, the docker configuration must know them.
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
"""`detached`: it has left the tree of mounts, and lives on for those who use it."""


class MountRecord(msgspec.Struct, frozen=True):
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
    mount: MountRecord


class State(SyncedDatabase):
    """The open database. Blocking: for threads. A context manager."""

    def __init__(self, store: Path) -> None:
        """Raises StoreUnusable: it cannot be read, or is a newer one's."""
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
        """A new mount, `mounting`. Raises StoreFull, StoreUnusable, as all that changes something."""
        values = (msgspec.json.encode(mount),)
        with self.transaction() as db:
            number = db.execute("INSERT INTO mount (phase, trouble, mount) VALUES ('mounting', '', ?)", values).lastrowid
        assert number is not None
        return Row(number, "mounting", "", mount)

    def mark(self, number: int, phase: Phase, trouble: str = "") -> None:
        """A mount has come so far."""
        with self.transaction() as db:
            db.execute("UPDATE mount SET phase = ?, trouble = ? WHERE number = ?", (phase, trouble, number))

    def remove(self, numbers: Sequence[int]) -> None:
        """These mounts are gone."""
        with self.transaction() as db:
            db.executemany("DELETE FROM mount WHERE number = ?", [(number,) for number in numbers])
