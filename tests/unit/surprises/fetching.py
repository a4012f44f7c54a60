"""Bytes on their way: chunks, layers that are fetched whole, documents. Most of their tasks belong to who waits for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import trio
import trio.lowlevel

from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.fuse import loop
from lazyfs.fuse.session import Session
from lazyfs.gate.catalog import Supply
from lazyfs.gate.failover import Failover
from lazyfs.image.image import all_of
from lazyfs.registry.ranges import Ranges
from lazyfs.store.layer_lock import lock_layers
from tests.unit.converter.making import Item, tar_of
from tests.unit.converter.places import MemoryRepository
from tests.unit.eager.loading import load
from tests.unit.fetch.scripted import FILES, ScriptedSource, make_layer, read_piece
from tests.unit.fuse.test_session import init
from tests.unit.surprises.scene import PATIENCE, Scene


async def fetched(scene: Scene) -> None:
    """Who reads that chunk gets an error; others read, meanwhile and afterwards, and so does the next one of the same."""
    layer, blob = make_layer(FILES)
    store, source = scene.store(), ScriptedSource(blob)
    got: dict[int, bytes | Exception] = {}

    async def read(fetcher: Fetcher, number: int) -> None:
        try:
            got[number] = await read_piece(fetcher, layer, number)
        except Exception as error:  # noqa: BLE001  what it is, is looked at
            got[number] = error

    with trio.fail_after(PATIENCE):
        async with open_fetcher(store, source, failures=scene.failures) as fetcher:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, fetcher, 0)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(read, fetcher, 399)
            failed = {number for number, what in got.items() if isinstance(what, Exception)}
            assert failed and all(got[number] is scene.error for number in failed)
            await read(fetcher, 200)
            for number in (*failed, 200):
                await read(fetcher, number)
                assert got[number] == FILES[number][1]


async def unpacked(scene: Scene) -> None:
    """The same of a run of several batches."""
    large = [(b"f%d" % number, number.to_bytes(1, "big") * (300 << 10)) for number in range(8)]
    scene.patch.setattr("lazyfs.fetch.transfer._BATCH", 1)
    layer, blob = make_layer(large)
    with trio.fail_after(PATIENCE):
        async with open_fetcher(scene.store(), ScriptedSource(blob), failures=scene.failures) as fetcher:
            failed: list[Exception] = []

            async def read(number: int) -> None:
                try:
                    await read_piece(fetcher, layer, number)
                except Exception as error:  # noqa: BLE001  what it is, is looked at
                    failed.append(error)

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(read, number)
            assert failed and set(failed) == {scene.error}
            assert [await read_piece(fetcher, layer, number) for number in range(8)] == [data for _, data in large]


async def loaded(scene: Scene) -> None:
    """A layer that is not lazy, for who wants the image: a second try succeeds. Raises what went wrong."""
    store, place = scene.store(), MemoryRepository()
    items: list[Item] = [(Entry(b"file", "reg", size=9 << 20), bytes(9 << 20))]
    place.add_image(tar_of(items))
    try:
        with trio.fail_after(PATIENCE):
            await load(place, store)
    finally:
        with trio.CancelScope(shield=True):
            (layer,) = await load(place, store)
            assert len(layer.entries) == 1


async def documents(scene: Scene) -> None:
    """Several calls at once."""
    await all_of([trio.lowlevel.checkpoint] * 3)


async def with_locks(scene: Scene) -> None:
    """Whose turn it is has it no more."""
    digest = digest_of(b"layer")
    store = scene.store()
    try:
        async with lock_layers(store, [digest]):
            await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True), trio.fail_after(PATIENCE):
            async with lock_layers(store, [digest]):
                pass


async def connected(scene: Scene) -> None:
    """Connections that nobody has asked for yet."""

    class Session:
        root = None
        pool: Any

    class Pool:
        async def acquire(self, url: object, *, fresh: bool) -> Any:
            await trio.lowlevel.checkpoint()
            return self

        def release(self, url: object, connection: object, *, reusable: bool) -> None:
            pass

    Session.pool = Pool()
    await Ranges(cast("Any", Session())).connect_ahead(3)


async def raced(scene: Scene) -> None:
    """Two ways to one object."""

    class Silent:
        image = "docker://registry.test/image"
        is_passed_over = False

        def signs_of_life(self, pieces: object) -> int:
            return 0

        def pass_over(self, pieces: object) -> None:
            pass

    layer = cast("Any", SimpleNamespace(digest="sha256:abc"))
    ways = [Supply(cast("Any", Silent()), layer, ()) for _ in range(2)]

    async def work(supply: Supply) -> str:
        if supply is ways[0]:
            await trio.sleep_forever()
        return "the other"

    with trio.fail_after(PATIENCE):
        assert await Failover(scene.failures).run(ways, slice(1), work, 0.01) == "the other"


async def looped(scene: Scene) -> None:
    """The gate's loop, without a mount."""

    async def main(max_tasks: int) -> None:
        await trio.sleep_forever()

    scene.patch.setattr(pyfuse3, "main", main)
    await loop.serve(1)


async def greeted(scene: Scene) -> None:
    """A session that is being agreed upon."""

    async def main() -> None:
        await trio.sleep_forever()

    scene.patch.setattr(pyfuse3, "main", main)
    with Session(pyfuse3.Operations()) as session, trio.fail_after(PATIENCE):
        await session.answer(init())
