"""What the tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from lazyfs.store.store import Store

T = TypeVar("T")


@pytest.fixture
def jumping(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Virtual time for what hands work to threads: done on the spot, because the clock would jump while a thread works."""

    async def run_sync(work: Callable[..., T], *arguments: object, **_: object) -> T:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr("trio.to_thread.run_sync", run_sync)
    return autojump_clock


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    """A store of the test's own."""
    with Store.open(directory) as opened:
        yield opened
