"""Locks between open files. Two descriptors stand for two processes, because the locks belong to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import StoreUnusable
from lazyfs.store import locks


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[int, int]]:
    fds = [locks.open_lock_file(str(tmp_path / "lock")) for _ in range(2)]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def test_exclusive_shuts_out_both_kinds(pair: tuple[int, int]) -> None:
    """One holder until it unlocks. Another byte is another lock."""
    mine, other = pair
    assert locks.try_lock(mine, start=7)
    assert not locks.try_lock(other, start=7)
    assert not locks.try_lock(other, start=7, shared=True)
    assert locks.try_lock(other, start=8)
    locks.unlock(mine, start=7)
    assert locks.try_lock(other, start=7)


def test_a_refused_upgrade_keeps_the_shared_lock(pair: tuple[int, int]) -> None:
    """There is no moment without a lock: a process that fails to become exclusive still counts as a user."""
    mine, other = pair
    assert locks.try_lock(mine, shared=True)
    assert locks.try_lock(other, shared=True)
    assert not locks.try_lock(mine)
    assert not locks.try_lock(other), "the shared lock of the first is gone"


def test_waiting_has_an_end(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is never released is an error that names what is locked."""
    mine, other = pair
    assert locks.try_lock(mine)
    monkeypatch.setattr(locks, "TIMEOUT", 0.0)
    with pytest.raises(StoreUnusable, match="the store X has been locked"):
        locks.lock(other, "the store X")
