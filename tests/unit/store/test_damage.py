"""Damages every file of a store in three ways: each later read is right, or reports the chunk missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from lazyfs.format.digest import digest_of
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import DAMAGES, content, keep_all, noise, overwrite, read_all

FILES = [[noise(200_000, 1)], [noise(10, 2)], [noise(70_000, 3), noise(300, 4)], [noise(9000, 5), noise(100_000, 6)]]
CONTENTS = [content(*pieces) for pieces in FILES]
UNDER_WAY = 3
"""Number of the file that has only its second chunk in the store."""
TOC = noise(5000, 7)


class Stored(NamedTuple):
    """A store that was left in the middle of its work: its log is not merged, as after a kill."""

    directory: Path
    files: list[Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("damage")
    with Store.open(folder / "live") as store:
        for pieces in FILES[:UNDER_WAY]:
            keep_all(store, pieces)
        store.keep(CONTENTS[UNDER_WAY], 1, FILES[UNDER_WAY][1])
        store.keep_document(digest_of(TOC), TOC)
        store.keep_note("key", "value")
        store.index.change()
        shutil.copytree(folder / "live", folder / "left")
    left = folder / "left"
    files = sorted(path for path in left.rglob("*") if path.is_file())
    assert {"index.sqlite", "index.sqlite-wal"} <= {path.name for path in files}
    return Stored(left, [path.relative_to(left) for path in files])


def check_all(store: Store) -> None:
    """No read is wrong, what is lost can be kept again, and then everything is there.

    Done twice, because damage of the index may only show when it is written; it is then started over, once.
    """
    for _ in range(2):
        mend(store)
        store.index.change()
    assert [read_all(store, made) for made in CONTENTS[:UNDER_WAY]] == FILES[:UNDER_WAY]
    assert read_all(store, CONTENTS[UNDER_WAY]) == [None, FILES[UNDER_WAY][1]]
    if store.document(digest_of(TOC)) is None:
        store.keep_document(digest_of(TOC), TOC)
    assert store.document(digest_of(TOC)) == TOC
    assert store.note("key") in (None, "value")


def mend(store: Store) -> None:
    for number, (made, pieces) in enumerate(zip(CONTENTS, FILES, strict=True)):
        for index, got in enumerate(read_all(store, made)):
            assert got in (None, pieces[index])
            if got is None and (number, index) != (UNDER_WAY, 0) and not store.copy_local(made, index):
                store.keep(made, index, pieces[index])


def check_folders(directory: Path) -> None:
    """No files without rows, and no temporary ones."""
    assert {path.name for path in (directory / "objects").iterdir()} == {made.name for made in CONTENTS[:UNDER_WAY]}
    assert {path.name for path in (directory / "partial").iterdir()} <= {CONTENTS[UNDER_WAY].name}
    assert list((directory / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_each_file_damaged(stored: Stored, tmp_path: Path, damage: str, expect_log: LogWatch) -> None:
    """Objects, partial files, documents, the index and its log: right bytes or none, in this process and the next."""
    expect_log("damaged")
    for number, name in enumerate(stored.files):
        directory = tmp_path / str(number)
        shutil.copytree(stored.directory, directory)
        DAMAGES[damage](directory / name)
        with Store.open(directory) as store:
            check_all(store)
        check_folders(directory)
        with Store.open(directory) as store:
            check_all(store)


@pytest.mark.parametrize("step", [997, pytest.param(97, marks=pytest.mark.slow)])
def test_each_part_of_the_index_damaged(step: int, stored: Stored, tmp_path: Path, expect_log: LogWatch) -> None:
    """One byte is flipped at regular distances, with the log merged: never a wrong byte, never an exception."""
    expect_log("index of the store .* damaged|damaged chunk|not fully synced when the machine stopped")
    merged = tmp_path / "merged"
    shutil.copytree(stored.directory, merged)
    Store.open(merged).close()
    size = (merged / "index.sqlite").stat().st_size
    for number, place in enumerate(range(0, size, step)):
        directory = tmp_path / str(number)
        shutil.copytree(merged, directory)
        data = (directory / "index.sqlite").read_bytes()
        overwrite(directory / "index.sqlite", place, bytes([data[place] ^ 0x21]))
        with Store.open(directory) as store:
            check_all(store)
        shutil.rmtree(directory)


def test_damage_that_sqlite_quotes(stored: Stored, tmp_path: Path, expect_log: LogWatch) -> None:
    """If a damaged table definition is not UTF-8, Python fails on sqlite's message. That also counts as a damaged index."""
    expect_log("index of the store .* damaged")
    directory = tmp_path / "store"
    shutil.copytree(stored.directory, directory)
    Store.open(directory).close()
    data = (directory / "index.sqlite").read_bytes()
    overwrite(directory / "index.sqlite", data.index(b"chunk_digest ON"), b"\xa0")
    with Store.open(directory) as store:
        check_all(store)


def test_an_index_of_something_else_is_not_believed(stored: Stored, tmp_path: Path, expect_log: LogWatch) -> None:
    """Not a database, another program's, or none although there are files: the store starts empty, with one warning."""
    expect_log("starting empty|has .* files but no index")
    for number, data in enumerate([b"no database at all" * 100, b""]):
        directory = tmp_path / str(number)
        shutil.copytree(stored.directory, directory)
        for name in ("index.sqlite-wal", "index.sqlite-shm"):
            (directory / name).unlink()
        (directory / "index.sqlite").write_bytes(data)
        with Store.open(directory) as store:
            assert os.listdir(directory / "objects") == []
            assert [store.missing(made, 0, 1) for made in CONTENTS] == [[0]] * len(CONTENTS)
            check_all(store)


def test_an_index_damaged_while_open(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """The process that finds it starts over, and the other one reopens the index. No reader sees an exception, and both share
    the store again."""
    expect_log("is damaged")
    with Store.open(directory) as other:
        many = [content(noise(50, seed)) for seed in range(2000)]
        for seed, made in enumerate(many):
            store.keep(made, 0, noise(50, seed))
        store.index.change()
        store.index.change(lambda db: db.execute("PRAGMA user_version = 1") and None)
        for opened in (store, other):
            opened.index._database._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # type: ignore[union-attr]
        path = directory / "index.sqlite"
        overwrite(path, 4096, b"\xa5" * (path.stat().st_size - 4096))
        for opened in (other, store):
            reader = opened.index._database._reader
            if reader is not None:  # else its commit thread has found the damage, and starts over at the next look
                reader.execute("PRAGMA shrink_memory")
            for seed, made in enumerate(many):
                assert opened.read(made, 0, 0, 50) in (None, noise(50, seed))
        keep_all(store, FILES[0])
        store.index.change()
        assert other.missing(CONTENTS[0], 0, 1) == [] or read_all(other, CONTENTS[0]) == [None]
        other.index.change()
        assert read_all(other, CONTENTS[0]) == FILES[0]


def test_a_content_is_not_checked_by_another_files_name(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """A file under the name of another one is damage, whatever its own checksums say."""
    first, second = keep_all(store, [noise(100, 1)]), keep_all(store, [noise(100, 2)])
    os.replace(directory / "objects" / first.name, directory / "objects" / second.name)
    expect_log("damaged")
    assert read_all(store, second) == [None]
    assert read_all(store, first) == [None]
