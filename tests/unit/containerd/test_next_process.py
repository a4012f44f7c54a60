"""What a lazyfsd does with the snapshots that an earlier one left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.containerd.snapshotter import lazy_name
from lazyfs.errors import SnapshotExists, StoreUnusable
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.containerd.snapshotting import Setting, labels_of, lazy_layer, name_of, snapshotting

NAME = lazy_name("chain-0", "")


@pytest.fixture
def folder(tmp_path: Path, jumping: MockClock, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one containerd, in virtual time. Only root could give directories away."""
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: None)
    return tmp_path / "k"


async def lazily(setting: Setting, number: int = 0, parent: str = "") -> None:
    with pytest.raises(SnapshotExists, match="is lazy"):
        await setting.snapshotter.prepare(f"extract {number}", parent, labels_of(number))


async def container(setting: Setting, key: str, parent: str) -> None:
    await setting.snapshotter.prepare(key, parent, {})


async def test_a_next_process(store: Store, folder: Path) -> None:
    """Layers of mounted roots live again, pulls go on, objects are noted, and what belongs to no snapshot goes."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting, 0)
        await lazily(setting, 1, NAME)
        top = lazy_name("chain-1", NAME)
        await container(setting, "runs", top)
        await container(setting, "stopped", NAME)
        setting.folders.fs(99).mkdir(parents=True)
        await trio.sleep(2)
        async with snapshotting(store, folder) as next_one:
            next_one.roots.there = {3}
            await next_one.snapshotter.start()
            names = [name_of(lazy_layer(number)) for number in range(2)]
            assert next_one.layers.expected == names and next_one.layers.uses == dict.fromkeys(reversed(names), 1)
            assert next_one.snapshotter.roots_on({names[1]}) == [setting.folders.root(3)]
            await wait_all_tasks_blocked()
            assert next_one.layers.resumed == names and next_one.directories == [3, 4]
            assert "drop layers" in next_one.roots.done


async def test_a_layer_of_a_later_version(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """After a downgrade its root is not served, and says so. The other roots are, no use is left over, and it can be removed."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting, 0)
        await lazily(setting, 1, NAME)
        await container(setting, "stays", NAME)
        await container(setting, "lost", lazy_name("chain-1", NAME))
        await trio.sleep(2)
        async with snapshotting(store, folder) as next_one:
            next_one.layers.refused[name_of(lazy_layer(0))] = StoreUnusable("a layer is of the dialect later")
            next_one.roots.there = {3, 4}
            await next_one.snapshotter.start()
            expect_log("files that snapshot '(stays|lost)' is missing cannot be fetched: a layer is of the dialect later")
            assert next_one.layers.used() == []
            with pytest.raises(StoreUnusable, match="dialect"):
                await next_one.snapshotter.mounts("lost")
            await next_one.snapshotter.remove("lost")
            assert next_one.layers.used() == []
            next_one.layers.refused.clear()
            await next_one.snapshotter.mounts("stays")
            assert next_one.layers.used() == [0]


async def test_a_root_whose_layers_surprise_is_tried_again(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """It holds up no other root, and its layers live as soon as they can."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting, 0)
        await lazily(setting, 1)
        await container(setting, "one", NAME)
        await container(setting, "other", lazy_name("chain-1", ""))
        await trio.sleep(2)
        async with snapshotting(store, folder) as next_one:
            next_one.layers.refused[name_of(lazy_layer(0))] = MemoryError("surprise")
            next_one.roots.there = {3, 4}
            await next_one.snapshotter.start()
            expect_log("layers of a root of 'one' has failed and is tried again in 1 s")
            assert next_one.layers.used() == [1]
            next_one.layers.refused.clear()
            await trio.sleep(2)
            assert next_one.layers.used() == [0, 1]
