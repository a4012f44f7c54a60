"""When overlays are made to look again, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from lazyfs.daemon.refresh import Refresher
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.gate.gate import Gate
from lazyfs.gate.inode import OBJECTS, inode_of
from lazyfs.store.store import Store
from lazyfs.tasks import Failures
from tests.unit.fetch.scripted import ScriptedSource, make_layer


class Setting:
    """A gate over one image, whose only file has several chunks, and the watch over what passes it."""

    def __init__(self, store: Store, fetcher: Any, layer: LayerObjects) -> None:
        self.catalog = Catalog()
        self.catalog.begin()
        self.catalog.add("image", fetcher, (layer,))
        self.gate = Gate(store, self.catalog, lambda *_: None, lambda _: False, Failures())
        self.refresher = Refresher(store, self.gate, self.catalog, lambda _: [])
        self.name = next(layer.names())

    async def arrive(self) -> None:
        """The file is looked up, and read, which makes it whole."""
        assert await self.gate.lookup(OBJECTS, self.name.encode(), 1) is not None
        await self.gate.read(inode_of(self.name), 0, 1 << 20)


@asynccontextmanager
async def watching(tmp_path: Path) -> AsyncIterator[Setting]:
    layer, blob = make_layer([(b"large", bytes(range(256)) * 1000)], chunk_size=100_000)
    with Store.open(tmp_path / "store") as store:
        async with open_fetcher(store, ScriptedSource(blob)) as fetcher, trio.open_nursery() as nursery:
            setting = Setting(store, fetcher, LayerObjects("layer", layer))
            nursery.start_soon(setting.refresher.run)
            yield setting
            nursery.cancel_scope.cancel()


async def test_what_has_become_whole_is_looked_for_again_once(tmp_path: Path, jumping: MockClock) -> None:
    """As soon as an object that was served by the gate is complete, and not again unless it is opened there."""
    async with watching(tmp_path) as setting:
        await setting.arrive()
        await trio.sleep(5)
        assert setting.refresher.rounds == 1
        assert not setting.gate.served
        await trio.sleep(20)
        assert setting.refresher.rounds == 1


async def test_what_was_held_is_looked_for_when_it_is_opened_again(tmp_path: Path, jumping: MockClock) -> None:
    """A file that was held open when the overlays looked again goes on through the gate: its next open makes them look once more."""
    async with watching(tmp_path) as setting:
        await setting.arrive()
        await trio.sleep(5)
        setting.gate.opened(inode_of(setting.name))
        await trio.sleep(20)
        assert setting.refresher.rounds == 2
        assert not setting.gate.reopened


async def test_names_of_images_that_have_gone_are_forgotten(tmp_path: Path, jumping: MockClock) -> None:
    """A chown of a whole image leaves nothing behind when the image has gone."""
    async with watching(tmp_path) as setting:
        assert await setting.gate.lookup(OBJECTS, setting.name.encode(), 1) is not None
        setting.gate.opened(inode_of(setting.name))
        setting.catalog.remove("image")
        await trio.sleep(20)
        assert not setting.gate.served | setting.gate.reopened
        assert setting.refresher.rounds == 0
