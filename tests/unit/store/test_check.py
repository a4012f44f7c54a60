"""The check of the whole store finds damage that reading would not, in files that nobody would read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.format.digest import digest_of
from lazyfs.store.blocks import sums_of
from lazyfs.store.check import CheckReport, check
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, flip, keep_all, noise, overwrite, read_all

PIECES = [noise(70_000, 1), noise(300, 2)]
SINGLE = [noise(5000, 3)]


def run(store: Store) -> CheckReport:
    return check(store, lambda done, total: None)


def test_a_sound_store(store: Store) -> None:
    """Everything is read, nothing is found, and progress ends at the total."""
    keep_all(store, PIECES)
    keep_all(store, SINGLE)
    store.keep(content(noise(100, 4), noise(200, 5)), 1, noise(200, 5))
    store.keep_document(digest_of(b"{}"), b"{}")
    seen: list[tuple[int, int]] = []
    report = check(store, lambda done, total: seen.append((done, total)))
    size = 70_000 + 300 + 5000 + 200
    assert report == CheckReport(
        chunks=4,
        bytes=size,
        documents=1,
        damaged_chunks=0,
        damaged_documents=0,
        leftovers=0,
        leftover_bytes=0,
        in_use=False,
        index_rebuilt=False,
    )
    assert seen[-1] == (size, size)


def test_bytes_with_sums_of_their_own_are_found(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """If bytes and checksums change together, a read accepts them, but sha256 does not."""
    made = keep_all(store, PIECES)
    wrong = noise(300, 9)
    overwrite(directory / "objects" / made.name, 70_000, wrong)
    sums = sums_of(wrong, made.digests[1])
    store.index.change(lambda db: db.execute("UPDATE chunk SET sums = ? WHERE position = 1", (sums,)) and None)
    expect_log("do not match its digest")
    assert run(store).damaged_chunks == 1
    assert read_all(store, made) == [PIECES[0], None]


def test_all_kinds_of_damage_are_dropped(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """A truncated file, a missing one, wrong checksums, a row under another name, a document: dropped once, and then all is
    sound."""
    keep_all(store, PIECES)
    gone, short, row, moved = (keep_all(store, [noise(5000, seed)]) for seed in range(10, 14))
    store.keep_document(digest_of(b"{}"), b"{}")
    (directory / "objects" / gone.name).unlink()
    os.truncate(directory / "objects" / short.name, 100)
    flip(directory / "documents" / digest_of(b"{}")[7:])

    def damage(db: object) -> None:
        db.execute("UPDATE chunk SET sums = x'0123456789abcdef' WHERE object = ?", (row.name,))  # type: ignore[attr-defined]
        db.execute("UPDATE chunk SET digest = ? WHERE object = ?", (row.digests[0], moved.name))  # type: ignore[attr-defined]

    store.index.change(damage)
    for cause in ("its file is gone", "too short", "sums do not match", "another object", "a damaged document"):
        expect_log(cause)
    report = run(store)
    assert (report.damaged_chunks, report.damaged_documents, report.documents) == (4, 1, 1)
    report = run(store)
    assert (report.chunks, report.damaged_chunks, report.documents, report.leftovers) == (2, 0, 0, 0)
    assert read_all(store, gone) == read_all(store, short) == read_all(store, row) == read_all(store, moved) == [None]


def test_files_without_rows_are_removed(store: Store, directory: Path) -> None:
    """Files left by a crash before their row take space until then. Files with rows stay."""
    made = keep_all(store, PIECES)
    under_way = content(noise(100, 4), noise(200, 5))
    store.keep(under_way, 1, noise(200, 5))
    (directory / "objects" / content(b"lost").name).write_bytes(b"lost")
    (directory / "partial" / content(b"lost", b"too").name).write_bytes(bytes(5000))
    (directory / "partial" / made.name).write_bytes(b"a leftover beside its object")
    (directory / "objects" / "no name of ours").write_bytes(b"")
    report = run(store)
    assert report.leftovers == 4
    assert report.leftover_bytes > 0
    assert os.listdir(directory / "objects") == [made.name]
    assert os.listdir(directory / "partial") == [under_way.name]
    assert read_all(store, made) == PIECES


def test_leftovers_stay_while_others_work(store: Store, directory: Path) -> None:
    """A file of another process whose row is not committed yet looks just like a leftover."""
    path = directory / "objects" / content(b"lost").name
    with Store.open(directory):
        path.write_bytes(b"lost")
        report = run(store)
        assert (report.leftovers, report.in_use) == (0, True)
        assert path.exists()
    assert run(store).leftovers == 1


def test_an_object_without_all_its_rows_becomes_partial(store: Store, directory: Path) -> None:
    """No file keeps its final name unless its rows are complete."""
    made = keep_all(store, PIECES)
    store.index.change(lambda db: db.execute("DELETE FROM chunk WHERE position = 0") and None)
    assert run(store).damaged_chunks == 0
    assert os.listdir(directory / "objects") == []
    assert os.listdir(directory / "partial") == [made.name]
    assert read_all(store, made) == [None, PIECES[1]]
    store.keep(made, 0, PIECES[0])
    assert os.listdir(directory / "objects") == [made.name]
    assert read_all(store, made) == PIECES


@pytest.mark.parametrize("damage", ["the tree of names", "the tree of digests"])
def test_a_damaged_index_is_started_over(store: Store, directory: Path, damage: str, expect_log: LogWatch) -> None:
    """Damage that no query has met yet is found, and costs only what was kept."""
    for seed in range(300):
        keep_all(store, [noise(10, seed)])
    store.close()
    path = directory / "index.sqlite"
    pages = path.stat().st_size // 4096
    overwrite(path, 4096 * (1 if damage == "the tree of names" else 2) + 8, b"\xff" * 200)
    assert pages > 10
    expect_log("starting empty")
    with Store.open(directory) as again:
        report = run(again)
        assert (report.index_rebuilt, report.chunks) == (True, 0)
        made = keep_all(again, SINGLE)
        assert read_all(again, made) == SINGLE
        assert os.listdir(directory / "objects") == [made.name]
