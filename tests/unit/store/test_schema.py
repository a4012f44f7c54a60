"""The format version: older is migrated, newer refused, nonsense is damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lazyfs.errors import StoreUnusable
from lazyfs.store import schema
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import keep_all, read_all


def stamp(directory: Path, application: int, user: int) -> None:
    with sqlite3.connect(directory / "index.sqlite") as db:
        db.execute(f"PRAGMA application_id = {application}")
        db.execute(f"PRAGMA user_version = {user}")
    db.close()


def test_the_file_carries_the_version(directory: Path) -> None:
    """`file` and any sqlite shell show what it is."""
    Store.open(directory).close()
    data = (directory / "index.sqlite").read_bytes()
    assert data[60:64] == bytes([0, 0, 0, schema.FORMAT])
    assert data[68:72] == b"LZ" + bytes([0, schema.FORMAT])


def test_a_newer_format_is_refused(directory: Path) -> None:
    """And left as it is, for the newer lazyfs that made it."""
    with Store.open(directory) as store:
        made = keep_all(store, [b"x"])
    stamp(directory, 0x4C5A0002, 2)
    with pytest.raises(StoreUnusable, match="has format 2, and this lazyfs knows formats up to 1"):
        Store.open(directory)
    assert (directory / "objects" / made.name).exists()
    stamp(directory, 0x4C5A0001, 1)
    with Store.open(directory) as store:
        assert read_all(store, made) == [b"x"]


@pytest.mark.parametrize(("application", "user"), [(0x4C5A0001, 9), (0x4C5A0009, 1), (0, 1), (0x4C5A0000, 0)])
def test_versions_that_disagree_are_damage(directory: Path, application: int, user: int, expect_log: LogWatch) -> None:
    """One flipped byte must not lock anybody out of the store."""
    Store.open(directory).close()
    stamp(directory, application, user)
    expect_log("is no index of a lazyfs store.*starting empty")
    Store.open(directory).close()


def test_an_older_format_is_migrated(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, alone in the store, and once."""
    with Store.open(directory) as store:
        made = keep_all(store, [b"x"])
    steps: list[int] = []
    monkeypatch.setattr(schema, "FORMAT", 3)
    monkeypatch.setattr(schema, "MIGRATIONS", {1: lambda _: steps.append(1), 2: lambda _: steps.append(2)})
    for _ in range(2):
        with Store.open(directory) as store:
            assert read_all(store, made) == [b"x"]
        assert steps == [1, 2]


def test_an_older_format_in_use_is_left(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older lazyfs goes on with what it knows."""
    made = keep_all(store, [b"x"])
    monkeypatch.setattr(schema, "FORMAT", 2)
    monkeypatch.setattr(schema, "MIGRATIONS", {1: lambda _: None})
    with pytest.raises(StoreUnusable, match="older format 1 and is in use"):
        Store.open(directory)
    assert read_all(store, made) == [b"x"]


def test_a_migration_that_fails_changes_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one transaction with the new version number."""
    Store.open(directory).close()

    def fail(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE chunk")
        raise StoreUnusable("no")

    with monkeypatch.context() as newer:
        newer.setattr(schema, "FORMAT", 2)
        newer.setattr(schema, "MIGRATIONS", {1: fail})
        with pytest.raises(StoreUnusable):
            Store.open(directory)
    Store.open(directory).close()
