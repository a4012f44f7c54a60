"""The format version: older ones are migrated, newer ones refused, and nonsense is damage."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from lazyfs.errors import StoreUnusable
from lazyfs.store import schema
from lazyfs.store.directory import Directory
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
    """It is left as it is for the newer lazyfs that made it."""
    with Store.open(directory) as store:
        made = keep_all(store, [b"x"])
    stamp(directory, 0x4C5A0003, 3)
    with pytest.raises(StoreUnusable, match="has format 3, and this lazyfs knows formats up to 2"):
        Store.open(directory)
    assert (directory / "objects" / made.name).exists()
    stamp(directory, 0x4C5A0002, 2)
    with Store.open(directory) as store:
        assert read_all(store, made) == [b"x"]


@pytest.mark.parametrize(("application", "user"), [(0x4C5A0002, 9), (0x4C5A0009, 2), (0, 2), (0x4C5A0000, 0)])
def test_versions_that_disagree_are_damage(directory: Path, application: int, user: int, expect_log: LogWatch) -> None:
    """One flipped byte must not lock users out of their store."""
    Store.open(directory).close()
    stamp(directory, application, user)
    expect_log("is not an index of a lazyfs store.*starting empty")
    Store.open(directory).close()


def test_an_older_format_is_migrated(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, without other users of the store, and once."""
    with Store.open(directory) as store:
        made = keep_all(store, [b"x"])
    steps: list[int] = []
    monkeypatch.setattr(schema, "FORMAT", 4)
    monkeypatch.setattr(schema, "MIGRATIONS", {2: lambda *_: steps.append(2), 3: lambda *_: steps.append(3)})
    for _ in range(2):
        with Store.open(directory) as store:
            assert read_all(store, made) == [b"x"]
        assert steps == [2, 3]


def test_an_older_format_in_use_is_left(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older lazyfs continues with the format that it knows."""
    made = keep_all(store, [b"x"])
    monkeypatch.setattr(schema, "FORMAT", 3)
    monkeypatch.setattr(schema, "MIGRATIONS", {2: lambda *_: None})
    with pytest.raises(StoreUnusable, match="older format 2 and is in use"):
        Store.open(directory)
    assert read_all(store, made) == [b"x"]


def test_a_migration_that_fails_changes_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one transaction with the new version number."""
    Store.open(directory).close()

    def fail(db: sqlite3.Connection, _: Directory) -> None:
        db.execute("DROP TABLE chunk")
        raise StoreUnusable("no")

    with monkeypatch.context() as newer:
        newer.setattr(schema, "FORMAT", 3)
        newer.setattr(schema, "MIGRATIONS", {2: fail})
        with pytest.raises(StoreUnusable):
            Store.open(directory)
    Store.open(directory).close()


FIRST = """
CREATE TABLE chunk (
    object TEXT NOT NULL,
    position INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    sums BLOB NOT NULL,
    PRIMARY KEY (object, position)
) WITHOUT ROWID;
CREATE INDEX chunk_digest ON chunk (digest);
INSERT INTO chunk SELECT substr(object, 1, 71), position, offset, size, digest, sums FROM now.chunk;
PRAGMA application_id = 0x4C5A0001;
PRAGMA user_version = 1;
"""


def test_the_first_format_is_migrated(directory: Path) -> None:
    """The content of a store of format 1 is kept, and checked once, because it may never have been synced. Its objects get
    twins."""
    with Store.open(directory) as store:
        made = keep_all(store, [b"x"])
    shutil.rmtree(directory / "arrived")
    (directory / "objects" / made.name).rename(directory / "objects" / made.name[:71])
    (directory / "index.sqlite").rename(directory / "now")
    with sqlite3.connect(directory / "index.sqlite") as db:
        db.execute("ATTACH ? AS now", (str(directory / "now"),))
        db.executescript(FIRST)
    db.close()
    (directory / "now").unlink()
    for _ in range(2):
        with Store.open(directory) as store:
            assert read_all(store, made) == [b"x"]
            assert not store.durability.is_pending()
            assert store.publish(made)
