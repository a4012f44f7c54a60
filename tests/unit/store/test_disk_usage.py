"""The disk usage of chunks is always known, and rarely counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.store import disk_usage
from lazyfs.store.disk_usage import DiskUsage
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from tests.unit.store.contents import keep_all, noise

BLOCK = 4096


@pytest.fixture
def counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The results of all counts. Changes by other processes are seen only when the pause is ended."""
    monkeypatch.setattr(disk_usage, "_PAUSE", 1e9)
    found: list[int] = []
    count = store.index.count_blocks
    monkeypatch.setattr(store.index._used, "_count", lambda: (found.append(count()), found[-1])[1])
    return found


def test_additions_are_added_and_removals_counted(store: Store, counts: list[int]) -> None:
    """A status ten times a second counts nothing; after a removal, it counts once."""
    made = [keep_all(store, [noise(5000, seed)]) for seed in range(3)]
    store.index.change()
    assert store.index.blocks() == 6 * BLOCK
    keep_all(store, [noise(1, 1), noise(BLOCK + 1, 2)])
    store.index.change()
    assert [store.index.blocks() for _ in range(10)] == [9 * BLOCK] * 10
    assert len(counts) == 1
    others = InUse({one.name for one in made[1:]})
    store.eviction.remove(None, others, lambda name: name.startswith("chunks-"), mounted_too=False)
    assert [store.index.blocks() for _ in range(10)] == [7 * BLOCK] * 10
    assert len(counts) == 2 and store.index.count_blocks() == 7 * BLOCK


def test_what_others_keep_is_seen_soon(store: Store, directory: Path, counts: list[int]) -> None:
    """With one count after the pause, and with none if the index has not changed."""
    assert store.index.blocks() == 0
    with Store.open(directory) as other:
        keep_all(other, [noise(5000, 1)])
        other.index.change()
    assert store.index.blocks() == 0
    store.index._used._pause_until = 0.0
    assert store.index.blocks() == 2 * BLOCK
    store.index._used._pause_until = 0.0
    assert store.index.blocks() == 2 * BLOCK
    assert len(counts) == 2


def test_a_removal_while_one_counts_is_not_lost() -> None:
    """The count may include what was removed: the next call counts again."""
    answers = iter((10, 7))

    def count() -> int:
        answer = next(answers)
        if answer == 10:
            known.forget()
        return answer

    known = DiskUsage(count, lambda: 0)
    assert (known.measure(), known.measure(), known.measure()) == (10, 7, 7)
