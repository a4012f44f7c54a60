"""Live images, their beginning and end, in virtual time."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.fetch.background import Background
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import PREFETCH_LANDMARK, Chunk, Entry
from lazyfs.format.manifest import Descriptor, ImageConfig, Manifest
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.gate.inode import inode_of
from lazyfs.image.image import Image
from lazyfs.image.layer import Layer, Whole
from lazyfs.live import layer as live_layer
from lazyfs.live.image import Images, LiveImage
from lazyfs.live.layer import IndexedLayer, index_layer
from lazyfs.live.layers import Layers
from lazyfs.live.source import Sources
from lazyfs.store.content import content_of
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor
from tests.unit.fetch.scripted import ScriptedSource, until

DIGEST = digest_of(b"")
BLOB = Descriptor("", DIGEST, 0, {}, None, {})
IMAGE = Image(f"scripted:@{DIGEST}", DIGEST, Manifest("", BLOB, (BLOB,), {}, {}, b""), ImageConfig((), "", "", ""))
CHUNK = Chunk(0, 1, bytes(32), 0, 0, 1)
LAYER = Layer(BLOB, DIGEST, 1, (Entry(b"file", "reg", size=1, chunks=(CHUNK,)),))
INODE = inode_of(content_of([CHUNK]).name)


class SlowToClose(ScriptedSource):
    """A source that closes when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_close = trio.Event()

    async def aclose(self) -> None:
        await self.may_close.wait()


def make_images(store: Store, catalog: Catalog, nursery: trio.Nursery) -> Images:
    """As a daemon makes them."""
    tasks = Supervisor(nursery)
    return Images(store, catalog, Sources(store, catalog, tasks), Layers(store, catalog, tasks), tasks)


class Setting:
    """The images of a daemon without the rest of it."""

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        self.catalog = Catalog()
        self.catalog.begin()
        self.images = make_images(store, self.catalog, nursery)

    def add(self, source: ScriptedSource) -> LiveImage:
        """Mount the image once."""
        return self.images.add(IMAGE, (LAYER,), source, background=False)


@asynccontextmanager
async def open_images(store: Store) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        yield Setting(store, nursery)
        nursery.cancel_scope.cancel()


async def test_an_image_lingers_and_ends(store: Store, autojump_clock: MockClock) -> None:
    """The image of a container is kept for the next one for a while, and ends if there is none."""
    async with open_images(store) as setting:
        live = setting.add(ScriptedSource())
        await live.known()
        live.leave()
        await trio.sleep(20)
        live.use(background=False)
        await trio.sleep(100)
        assert setting.images.live == {IMAGE.name: live}
        live.leave()
        await trio.sleep(100)
        assert not setting.images.live
        assert not setting.catalog.images_with([INODE])


async def test_entries_are_kept_until_the_gate_knows_the_objects(store: Store, autojump_clock: MockClock) -> None:
    """Entries are nearly all of an image's memory, and directories have no objects: twenty images must not cost what their
    names do."""
    async with open_images(store) as setting:
        landmark = Entry(PREFETCH_LANDMARK, "reg", size=1, chunks=(Chunk(0, 1, bytes(32), 5, 0, 6),))
        layer = LAYER._replace(entries=(*LAYER.entries, landmark), whole=Whole("", DIGEST))
        live = setting.images.add(IMAGE, (layer,), ScriptedSource(), background=False)
        await live.known()
        assert live.layers == (layer._replace(entries=()),) and live.live_layers[0].kept.prefetch_end == 5
        assert live.blobs[0].whole == live.layers[0], "nor by way of the fetcher"
        assert setting.images.containing(setting.catalog.images_with([INODE])) == {IMAGE.name}


async def test_an_image_that_is_ending_is_not_mounted_again(store: Store, autojump_clock: MockClock) -> None:
    """Its fetcher delivers nothing any more: a new mount makes a new image, which the end of the old one does not affect."""
    async with open_images(store) as setting:
        source = SlowToClose()
        old = setting.add(source)
        await old.known()
        old.leave()
        await trio.sleep(100)
        assert not setting.images.live, "nobody may find it: it is being closed"
        new = setting.add(ScriptedSource())
        await new.known()
        assert setting.catalog.is_complete
        source.may_close.set()
        await wait_all_tasks_blocked()
        assert setting.images.live == {IMAGE.name: new}
        assert setting.images.containing(setting.catalog.images_with([INODE])) == {IMAGE.name}


async def test_an_image_that_cannot_be_indexed_is_tried_again(
    store: Store, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    """No caller waits forever, and the daemon continues: status has the reason until indexing succeeds."""
    expect_log("No space left")
    tries: list[Layer] = []

    def index(layer: Layer, known: LayerObjects | None) -> IndexedLayer:
        tries.append(layer)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return index_layer(layer, known)

    monkeypatch.setattr(live_layer, "index_layer", index)
    async with open_images(store) as setting:
        live = setting.add(ScriptedSource())
        await until(lambda: live.failure)
        assert "No space left" in live.trouble and not live.is_known
        await live.known()
        assert not live.trouble
        assert setting.images.containing(setting.catalog.images_with([INODE])) == {IMAGE.name}


async def test_what_is_not_wanted_any_more_is_not_fetched(
    store: Store, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the only mount is cancelled: its background fetch ends at once. The next mount starts it again."""
    running: list[bool] = []

    async def run(_background: Background) -> None:
        running.append(True)
        try:
            await trio.sleep_forever()
        finally:
            running.pop()

    monkeypatch.setattr(Background, "run", run)
    async with open_images(store) as setting:
        live = setting.images.add(IMAGE, (LAYER,), ScriptedSource(), background=True)
        await until(lambda: running)
        live.use(background=True)
        live.leave()
        live.give_up()
        await wait_all_tasks_blocked()
        assert running, "another mount wants it"
        live.leave()
        live.give_up()
        await until(lambda: not running)
        live.use(background=True)
        await until(lambda: running)
