"""Live layers that replace each other, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.live.layer import index_layer
from lazyfs.live.lifecycle import State
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.live.living import living


async def test_an_ending_layer_does_not_affect_the_next_one_of_its_name(
    store: Store, image: ScriptedImage, jumping: MockClock
) -> None:
    """An image that is mounted again while its last source is closing has a new source, whose layer has the same name."""
    async with living(store, image) as setting:
        ending, coming = (setting.sources.own("image", setting.open()) for _ in range(2))
        old = setting.layers.use(ending, setting.loaded(0), setting.index(0))
        await old.known()
        new = setting.layers.use(coming, setting.loaded(0), setting.index(0))
        assert new is not old and new.name == old.name
        assert not setting.catalog.is_complete and not setting.holds(), "the gate waits for the new one"
        await new.known()
        for uses in (old.uses, ending.uses):
            uses.change(-1)
        await wait_all_tasks_blocked()
        assert old.lifecycle.is_in(State.ENDED) and ending.lifecycle.is_in(State.CLOSED)
        assert setting.layers.live == {new.name: new} and setting.holds() and setting.catalog.is_complete
        assert [supply.fetcher for supply in setting.catalog.find(setting.inode())] == [coming.fetcher]


async def test_a_source_gets_a_place_in_the_catalog_for_live_layers_only(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """Its fetcher fails, and the next one serves the remaining layers."""
    async with living(store, image) as setting:
        expect_log("fetcher of .* has failed")
        layers = [setting.use(0), setting.use(1)]
        for live in layers:
            await live.known()
        layers[0].uses.change(-1)
        await trio.sleep(40)
        source = setting.source()
        failed = source.fetcher
        assert failed is not None and not setting.holds(0)
        failed._tasks._nursery.start_soon(_fail)
        await trio.sleep(2)
        assert source.fetcher is not failed and setting.holds(1) and not setting.holds(0)
        assert list(setting.catalog._images) == [layers[1].name]


async def test_one_layer_at_a_time_is_indexed(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexing needs the interpreter, and the event loop waits once for each thread."""
    most = running = 0

    async def run_sync(work: Callable[..., object], *arguments: object, **_: object) -> object:
        nonlocal most, running
        if work is not index_layer:
            return work(*arguments)
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return work(*arguments)

    async with living(store, image) as setting:
        monkeypatch.setattr("trio.to_thread.run_sync", run_sync)
        await setting.mount("first", 0, 1).known()
    assert most == 1


async def _fail() -> None:
    raise ZeroDivisionError
