"""Tallies of missing chunks: always right, and cheap if nothing has changed."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import StoreFull
from lazyfs.store import tally as tally_module
from lazyfs.store.content import Content
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from lazyfs.store.tally import Missing, Tally
from tests.conftest import LogWatch
from tests.unit.store.contents import content, flip, keep_all, noise, read_all

FILES = [[noise(1000, number)] for number in range(20)] + [[noise(10, 1), noise(10, 2), noise(10, 1)]]
MADE = [content(*pieces) for pieces in FILES]
DIFFERENT = 22
SIZE = 20 * 1000 + 2 * 10


class Looks:
    """Number of objects that a tally has looked up since the last call."""

    def __init__(self, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        look = tally._count_again

        def counted(names: Sequence[str]) -> None:
            self._count += len(names)
            look(names)

        monkeypatch.setattr(tally, "_count_again", counted)

    def __call__(self) -> int:
        count, self._count = self._count, 0
        return count


def remove(store: Store, *gone: Content) -> None:
    """Evict these objects."""
    names = {made.name for made in gone}
    freed = store.eviction.remove(None, InUse({made.name for made in MADE} - names), lambda _: False, mounted_too=False)
    assert set(freed.names) == names


def test_chunks_are_counted_as_they_arrive_and_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal chunks count once, and are missing as long as one of them is. After the first lookup, arrivals need none, and a
    removed object is looked up alone."""
    monkeypatch.setattr(tally_module, "_LOOK_PAUSE", 1e9)
    tally = store.tally(MADE)
    looks = Looks(tally, monkeypatch)
    assert tally.measure() == Missing(DIFFERENT, SIZE)
    assert looks() == len(MADE)
    several = MADE[-1]
    store.keep(several, 0, noise(10, 1))
    store.keep(several, 1, noise(10, 2))
    assert tally.measure() == Missing(DIFFERENT - 1, SIZE - 10), "its third chunk is the first one again, and not here"
    store.keep(several, 2, noise(10, 1))
    for pieces in FILES[:-1]:
        keep_all(store, pieces)
    store.index.change()
    for _ in range(10):
        assert tally.measure() == Missing(0, 0)
    assert looks() == 0
    remove(store, MADE[3])
    assert tally.measure() == Missing(1, 1000)
    assert looks() == 1


def test_a_tally_begins_with_stored_chunks(store: Store) -> None:
    """Committed or not."""
    keep_all(store, FILES[0])
    store.index.change()
    keep_all(store, FILES[1])
    assert store.tally(MADE).measure() == Missing(DIFFERENT - 2, SIZE - 2000)


def test_what_another_process_removes_is_seen_at_once(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts as complete if another process has evicted some of it, however often both remove something."""
    monkeypatch.setattr(tally_module, "_LOOK_PAUSE", 1e9)
    for pieces in FILES:
        keep_all(store, pieces)
    store.index.change()
    tally = store.tally(MADE)
    with Store.open(directory) as other:
        theirs = other.tally(MADE)
        assert tally.measure() == theirs.measure() == Missing(0, 0)
        for number in range(6):
            remove((store, other)[number % 2], MADE[number])
            expected = Missing(number + 1, 1000 * (number + 1))
            assert (tally.measure(), theirs.measure()) == (expected, expected)


def test_what_another_process_keeps_is_seen_soon(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the pause is over, then with one lookup; and without any if the index has not changed."""
    tally = store.tally(MADE)
    looks = Looks(tally, monkeypatch)
    monkeypatch.setattr(tally_module, "_LOOK_PAUSE", 1e9)
    tally.measure()
    with Store.open(directory) as other:
        keep_all(other, FILES[0])
        other.index.change()
        looks()
        assert tally.measure() == Missing(DIFFERENT, SIZE) and not looks()
        tally._pause_until = 0.0
        assert tally.measure() == Missing(DIFFERENT - 1, SIZE - 1000) and looks() == len(MADE)
        tally._pause_until = 0.0
        assert tally.measure() == Missing(DIFFERENT - 1, SIZE - 1000) and not looks()


def test_damage_is_missing(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """As soon as a reader has found it."""
    keep_all(store, FILES[0])
    store.index.change()
    tally = store.tally(MADE[:1])
    assert tally.measure() == Missing(0, 0)
    flip(directory / "objects" / MADE[0].name)
    expect_log("dropped damaged chunk")
    assert read_all(store, MADE[0]) == [None]
    assert tally.measure() == Missing(1, 1000)
    keep_all(store, FILES[0])
    assert tally.measure() == Missing(0, 0)


def test_damage_that_cannot_be_dropped_is_missing(
    store: Store, directory: Path, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: the row stays, and is void."""
    keep_all(store, FILES[0])
    store.index.change()
    tally = store.tally(MADE[:1])
    assert tally.measure() == Missing(0, 0)
    flip(directory / "objects" / MADE[0].name)
    expect_log("disk is full")
    expect_log("is damaged .* and cannot be dropped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.index._database, "_commit", _full)
        assert read_all(store, MADE[0]) == [None]
        assert tally.measure() == Missing(1, 1000)


def test_what_is_given_up_is_missing(store: Store, expect_log: LogWatch) -> None:
    """A chunk counts from when it is kept until its row cannot be committed."""
    tally = store.tally(MADE[:1])
    expect_log("disk is full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.index._database, "_commit", _full)
        with store.index._database.writing:
            keep_all(store, FILES[0])
            assert tally.measure() == Missing(0, 0)
            with pytest.raises(StoreFull):
                store.index.change()
        assert tally.measure() == Missing(1, 1000)


def test_a_row_whose_file_is_another_by_now_is_missing(store: Store, directory: Path) -> None:
    """It is not committed, and does not count."""
    tally = store.tally(MADE[-1:])
    with store.index._database.writing:
        store.keep(MADE[-1], 0, noise(10, 1))
        store.keep(MADE[-1], 1, noise(10, 2))
        assert tally.measure() == Missing(1, 10)
        (directory / "partial" / MADE[-1].name).unlink()
        store.index.change()
    assert tally.measure() == Missing(2, 20)


def test_a_lost_index_has_nothing(store: Store, expect_log: LogWatch) -> None:
    """After starting over, everything that was counted is missing."""
    keep_all(store, FILES[0])
    store.index.change()
    tally = store.tally(MADE[:1])
    assert tally.measure() == Missing(0, 0)
    expect_log("starting empty")
    with store.index._database.writing:
        store.index._database.start_over("for the test")
    assert tally.measure() == Missing(1, 1000)


def test_a_chunk_kept_during_a_lookup_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is kept after the query, and before its result is applied."""
    tally = store.tally(MADE)
    ask = store.index.held_many

    def late(names: Sequence[str]) -> dict[str, Any]:
        answer = ask(names)
        keep_all(store, FILES[0])
        return answer

    monkeypatch.setattr(store.index, "held_many", late)
    assert tally.measure() == Missing(DIFFERENT - 1, SIZE - 1000)


def test_a_failed_removal_hides_no_removal_of_others(store: Store, directory: Path) -> None:
    """The count of removals is rolled back with the transaction that raised it."""
    for pieces in FILES:
        keep_all(store, pieces)
    store.index.change()
    tally = store.tally(MADE)
    assert tally.measure() == Missing(0, 0)

    def fail(_: sqlite3.Connection) -> None:
        store.index._count_removal(_)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.index.change(fail, removing=[MADE[0].name])
    with Store.open(directory) as other:
        remove(other, MADE[5])
    assert tally.measure() == Missing(1, 1000)


def test_what_is_spared_counts_again(store: Store) -> None:
    """An object is announced after its rows were deleted: they are restored, and so is the count."""
    keep_all(store, FILES[0])
    store.index.change()
    tally = store.tally(MADE[:1])
    seen: list[Missing] = []

    def protected(_: str) -> bool:
        seen.append(tally.measure())
        return len(seen) > 1

    assert not store.eviction.remove(None, InUse(), protected, mounted_too=False).names
    assert seen == [Missing(0, 0), Missing(1, 1000)]
    assert tally.measure() == Missing(0, 0)


def test_all_that_was_removed_by_hand_is_missing(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """As soon as a reader has missed one of them."""
    for pieces in FILES[:3]:
        keep_all(store, pieces)
    store.index.change()
    tally = store.tally(MADE[:3])
    assert tally.measure() == Missing(0, 0)
    for made in MADE[:2]:
        (directory / "objects" / made.name).unlink()
    expect_log("its file is gone")
    expect_log("dropped 1 objects from the index")
    assert read_all(store, MADE[0]) == [None]
    assert tally.measure() == Missing(2, 2000)


def test_an_unreferenced_tally_is_forgotten(store: Store) -> None:
    """The tally of an image that is gone costs the others nothing."""
    kept = store.tally(MADE)
    for _ in range(10):
        store.tally(MADE)
    gc.collect()
    last = store.tally(MADE)
    assert [each() for each in store.index.tallies._following] == [kept, last]


def _full(*_: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error
