"""The index: other processes see rows soon, many at a time, and they survive errors of sqlite."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from lazyfs.errors import StoreFull, StoreUnusable
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, keep_all, noise, read_all


def fail(code: int, message: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def test_rows_reach_others_by_themselves(store: Store, directory: Path) -> None:
    """No call is needed for a commit."""
    with Store.open(directory) as other:
        made = keep_all(store, [b"x"])
        while other.missing(made, 0, 1):
            os.sched_yield()
        assert read_all(other, made) == [b"x"]


def test_many_rows_are_one_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping a chunk does not commit: a hundred files take far fewer transactions."""
    commits: list[int] = []
    settled = store._release_claims
    monkeypatch.setattr(store.index, "_after_commit", lambda: (commits.append(1), settled()))
    for seed in range(100):
        keep_all(store, [noise(10, seed)])
    store.index.change()
    assert len(commits) < 50


def test_rows_wait_while_sqlite_cannot_write(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """They are read from memory meanwhile, new chunks are refused, and nothing is lost once it can write again."""
    made = keep_all(store, [b"x"])
    expect_log("cannot be written: busy")

    def busy(_: sqlite3.Connection) -> None:
        raise fail(sqlite3.SQLITE_BUSY, "busy")

    other = content(b"y")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.index._database, "_commit", lambda *_: busy(None))  # type: ignore[arg-type]
        with pytest.raises(StoreUnusable, match="busy"):
            store.index.change()
        with pytest.raises(StoreUnusable, match="busy"):
            store.keep(other, 0, b"y")
        assert read_all(store, made) == [b"x"]
    store.keep(other, 0, b"y")
    store.index.change()
    with Store.open(directory) as second:
        assert (read_all(second, made), read_all(second, other)) == ([b"x"], [b"y"])


def test_rows_without_room_are_given_up_by_halves(store: Store, directory: Path) -> None:
    """The space of some bytes is used for the rows of others: what stays has both, what is given up has neither."""
    made = [content(noise(10, seed)) for seed in range(20)]
    commit = store.index._database._commit
    batches: list[int] = []

    def full(work: object, synced: bool) -> None:
        batches.append(len(store.index._buffer))
        if len(store.index._buffer) > 5:
            raise fail(sqlite3.SQLITE_FULL, "database or disk is full")
        commit(work, synced)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        with store.index._database.writing:
            for seed, one in enumerate(made):
                store.keep(one, 0, noise(10, seed))
            patch.setattr(store.index._database, "_commit", full)
            store.index.change()
        assert batches == [20, 10, 5]
    assert [read_all(store, one) for one in made] == [[noise(10, seed)] if seed < 5 else [None] for seed in range(20)]
    assert len(os.listdir(directory / "objects")) == 5


def test_no_room_for_any_row(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """Everything buffered is given up, and the next keep is refused before it writes."""
    expect_log("disk is full")
    made = content(b"x")

    def full(*_: object) -> None:
        raise fail(sqlite3.SQLITE_FULL, "database or disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.index._database, "_commit", full)
        with store.index._database.writing:
            store.keep(made, 0, b"x")
            with pytest.raises(StoreFull):
                store.index.change()
        with pytest.raises(StoreFull):
            store.keep(made, 0, b"x")
        assert (read_all(store, made), os.listdir(directory / "objects")) == ([None], [])


def test_an_index_that_cannot_be_read_holds_nothing(store: Store, expect_log: LogWatch) -> None:
    """A reader is told that chunks are missing, and never sees sqlite's error. Nothing is dropped for it."""
    made = keep_all(store, [b"x"])
    store.index.change()

    class Failing:
        def execute(self, *_: object) -> None:
            raise fail(sqlite3.SQLITE_IOERR, "disk I/O error")

    expect_log("cannot be read: disk I/O error")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.index._database, "_reader", Failing())
        assert store.missing(made, 0, 1) == [0]
        assert read_all(store, made) == [None]
    assert read_all(store, made) == [b"x"]


def test_a_directory_that_is_removed_in_use(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """`rm -rf` under a running mount: the store is empty, nothing can be kept, and no other exception is raised."""
    made = keep_all(store, [b"x"])
    store.index.change()
    shutil.rmtree(directory)
    expect_log("cannot be opened again")
    expect_log("has lost its index|its file is gone|cannot be dropped")
    assert read_all(store, made) == [None]
    assert store.missing(made, 0, 1) == [0]
    with pytest.raises(StoreUnusable):
        store.keep(made, 0, b"x")
    with pytest.raises(StoreUnusable):
        store.index.change()


def test_an_index_replaced_by_another_process_is_joined(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """After one process has started over, both see each other's chunks again."""
    expect_log("starting empty")
    with Store.open(directory) as other:
        with other.index._database.writing:
            other.index._database.start_over("for the test")
        store.index.change()
        made = keep_all(store, [b"x"])
        store.index.change()
        assert read_all(other, made) == [b"x"]


def test_known_chunks_are_found_in_one_go(store: Store) -> None:
    """Of many digests, those that have a committed or buffered row, in any file."""
    pieces = [noise(10, seed) for seed in range(200)]
    made = content(noise(10, 1000), *pieces)
    store.keep(made, 0, noise(10, 1000))
    for number, piece in enumerate(pieces[:150]):
        store.keep(made, number + 1, piece)
        if number == 100:
            store.index.change()
    digests = list(made.digests)
    assert store.held_anywhere(digests) == set(digests[:151])
    assert store.held_anywhere([]) == set()
