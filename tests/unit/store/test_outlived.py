"""No row outlives its file: an object of several chunks is created without reading them, and the kernel serves it unchecked."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import StoreFull
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, keep_all, noise, read_all, zero

PIECES = [noise(50_000, 1), noise(60_000, 2), noise(30_000, 3)]
MADE = content(*PIECES)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Called with a store: its disk is full for files of several chunks."""

    def apply(store: Store) -> pytest.MonkeyPatch:
        def refuse(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store.files, "put_chunk", refuse)
        return monkeypatch

    return apply


def test_a_chunk_that_finds_no_room_takes_no_other_along(store: Store, no_room: Any) -> None:
    """Uncommitted rows count: the file has their bytes."""
    with store.index._database.writing:  # nothing is committed meanwhile
        store.keep(MADE, 0, PIECES[0])
        no_room(store)
        with pytest.raises(StoreFull):
            store.keep(MADE, 1, PIECES[1])
        assert read_all(store, MADE) == [PIECES[0], None, None]
    store.index.change()
    assert read_all(store, MADE) == [PIECES[0], None, None]


def test_a_file_with_no_row_goes(store: Store, directory: Path, no_room: Any) -> None:
    """Bytes without a row only take space."""
    (directory / "partial" / MADE.name).write_bytes(PIECES[0])
    no_room(store)
    with pytest.raises(StoreFull):
        store.keep(MADE, 1, PIECES[1])
    assert not list((directory / "partial").iterdir())


def test_a_row_whose_file_another_process_removed_is_not_committed(store: Store, directory: Path, no_room: Any) -> None:
    """The other process could not see the row, and had no room for a chunk of its own."""
    with Store.open(directory) as other:
        with store.index._database.writing:
            store.keep(MADE, 0, PIECES[0])
            no_room(other)
            with pytest.raises(StoreFull):
                other.keep(MADE, 1, PIECES[1])
            assert not list((directory / "partial").iterdir())
        store.keep(MADE, 1, PIECES[1])
        store.keep(MADE, 2, PIECES[2])
        store.index.change()
        assert not list((directory / "objects").iterdir())
        assert store.missing(MADE, 0, 3) == other.missing(MADE, 0, 3) == [0]
        store.keep(MADE, 0, PIECES[0])
    assert read_all(store, MADE) == PIECES
    assert (directory / "objects" / MADE.name).read_bytes() == b"".join(PIECES)


def test_rows_of_a_file_removed_by_hand_do_not_count_for_a_new_one(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """They are deleted before the file is created, so the new one is not complete with its last chunk."""
    store.keep(MADE, 0, PIECES[0])
    store.keep(MADE, 1, PIECES[1])
    store.index.change()
    (directory / "partial" / MADE.name).unlink()
    expect_log("its file is missing")
    store.keep(MADE, 2, PIECES[2])
    store.index.change()
    assert not list((directory / "objects").iterdir())
    assert store.missing(MADE, 0, 3) == [0, 1]
    assert read_all(store, keep_all(store, PIECES)) == PIECES


def test_what_cannot_be_dropped_is_missing_all_the_same(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """There is no room in the index to delete a row: its chunk is fetched and served, without a wait for the deadline. Logged
    once."""
    store.keep(MADE, 0, PIECES[0])
    store.keep(MADE, 1, PIECES[1])
    store.index.change()
    zero(directory / "partial" / MADE.name)

    expect_log("disk is full")

    def refuse(*_: object, **__: object) -> None:
        raise StoreFull("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store.index._database, "transact", refuse)
        for _ in range(2):
            assert read_all(store, MADE) == [None, None, None]
            assert store.missing(MADE, 0, 3) == store.missing_many([MADE])[0] == [0, 1, 2]
            assert not store.copy_local(content(PIECES[0]), 0)
        with pytest.raises(StoreFull):
            store.keep(MADE, 0, PIECES[0])
    store.keep(MADE, 2, PIECES[2])
    store.index.change()
    with Store.open(directory) as other:
        assert other.missing(MADE, 0, 3) == [0, 1]
    assert read_all(store, keep_all(store, PIECES)) == PIECES
