"""Notes: hints that outlive the process, or are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.store.store import Store
from tests.unit.store.contents import DAMAGES


def test_a_note_is_kept_and_replaced(directory: Path) -> None:
    """The last value under a key, also in the next process. Keys do not collide."""
    with Store.open(directory) as store:
        store.keep_note("key", "first")
        store.keep_note("key", "zweite ä\nline")
    with Store.open(directory) as store:
        assert store.note("key") == "zweite ä\nline"
        assert store.note("other") is None


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_note_is_missing(store: Store, directory: Path, damage: Callable[[Path], None]) -> None:
    """Neither half a value nor another one is returned."""
    store.keep_note("key", "value")
    (path,) = (directory / "notes").iterdir()
    damage(path)
    assert store.note("key") is None
