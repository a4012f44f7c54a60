"""What survives lazyfsd."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lazyfs.daemon.state import FILE_NAME, MountRecord, Row, State
from lazyfs.errors import StoreFull, StoreUnusable


def a_mount(directory: str = "/mnt/a") -> MountRecord:
    return MountRecord(
        directory, "ticket", "host/repo@sha256:1", "docker://host/repo:v1", "linux/amd64", False, "on", "", False, ""
    )


def test_rows_come_back(tmp_path: Path) -> None:
    """A mount is what it was after the database was closed and opened, with its number and how far it came."""
    with State(tmp_path) as state:
        first, second = state.add(a_mount()), state.add(a_mount("/mnt/ü, with: odd"))
        state.mark(second.number, "mounted", "trouble")
    with State(tmp_path) as state:
        assert state.rows() == (first, Row(second.number, "mounted", "trouble", second.mount))


def test_numbers_are_not_used_again(tmp_path: Path) -> None:
    """The number of a mount is never reused, not even the last one's: the kernel may still know its recording directory."""
    with State(tmp_path) as state:
        gone = state.add(a_mount())
        state.remove([gone.number])
        assert state.rows() == ()
    with State(tmp_path) as state:
        assert state.add(a_mount()).number > gone.number


def test_a_crash_leaves_what_was_said(tmp_path: Path) -> None:
    """A process that dies without closing has lost nothing that it had written."""
    state = State(tmp_path)
    row = state.add(a_mount())
    with State(tmp_path) as other:
        assert other.rows() == (row,)
    state.close()


@pytest.mark.parametrize("damage", [b"no database at all, but long enough to be read as a header of one", b""])
def test_damage_is_reported(damage: bytes, tmp_path: Path) -> None:
    """A file that is not a database is refused in words; an empty one is a new one."""
    (tmp_path / FILE_NAME).write_bytes(damage * 100)
    if damage:
        with pytest.raises(StoreUnusable, match=r"damaged.*umount"):
            State(tmp_path)
    else:
        with State(tmp_path) as state:
            assert state.rows() == ()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """What a later version wrote is not guessed at, and another program's database is none of ours."""
    State(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreUnusable, match="newer"):
        State(tmp_path)
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA application_id = 7")
    database.close()
    with pytest.raises(StoreUnusable, match="does not contain mounts of lazyfs"):
        State(tmp_path)


def test_rot_is_reported(tmp_path: Path) -> None:
    """An unreadable row is reported as damage, not as a defect of lazyfs."""
    with State(tmp_path) as state:
        state.add(a_mount())
        state._db.execute("UPDATE mount SET mount = x'00'")
        with pytest.raises(StoreUnusable, match=r"damaged.*umount"):
            state.rows()


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    """What cannot be written is refused in words, never as damage, and what was written before stands."""
    with State(tmp_path) as state:
        row = state.add(a_mount())
        state._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreFull, match="Free space"):
            for number in range(100):
                state.add(a_mount(f"/mnt/{number}" + "x" * 1000))
        assert state.rows()[0] == row
