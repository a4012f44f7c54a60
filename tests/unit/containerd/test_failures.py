"""Unexpected failures: callers that wait get an error, it is logged, and the next request tries again."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from lazyfs.containerd.lazy_layers import layer_of
from lazyfs.containerd.resolver import LayerResolver
from lazyfs.errors import LocalError
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.gate.inode import inode_of
from lazyfs.image.layer import Layer
from lazyfs.live import layer as live_layer
from lazyfs.live.layer import IndexedLayer, LayerIndexer, index_layer
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch
from tests.unit.containerd.living import LINGER, lazy_layers, living
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.fetch.scripted import until


def resolver(store: Store, image: ScriptedImage, nursery: trio.Nursery) -> LayerResolver:
    """What resolves, where a task that fails ends nothing else."""
    tasks = Supervisor(nursery)
    return LayerResolver(store, lazy_layers(store, Catalog(), tasks, lambda _: image.registry()), tasks)


async def test_a_layer_that_cannot_be_indexed_is_tried_again(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread or memory for a moment: callers get the reason instead of waiting for ever, and later it succeeds."""
    expect_log("layer index of .* has failed and is tried again in .* s: no room")
    tries = iter(range(3))

    def fail(layer: Layer, known: LayerObjects | None) -> IndexedLayer:
        if next(tries, None) is not None:
            raise OSError("no room")
        return index_layer(layer, known)

    monkeypatch.setattr(live_layer, "index_layer", fail)
    async with living(store, image) as setting:
        live = setting.use()
        await until(lambda: live.trouble)
        assert "no room" in live.trouble and not live.is_known
        await live.known()
        assert setting.holds() and not live.trouble


async def test_a_waiter_makes_the_index_itself_where_the_first_failed(
    image: ScriptedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caller gets the error; the others get the index, made once, and the layer's entries are released."""
    made: list[IndexedLayer] = []
    answers: list[IndexedLayer | Exception] = []

    def fail_first(layer: Layer, known: LayerObjects | None) -> IndexedLayer:
        if not answers:
            raise OSError("no room")
        made.append(index_layer(layer, known))
        return made[-1]

    async def ask() -> None:
        try:
            answers.append(await index.indexed())
        except OSError as error:
            answers.append(error)

    monkeypatch.setattr(live_layer, "index_layer", fail_first)
    index = LayerIndexer(layer_of(image.lazy[0]))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
    assert isinstance(answers[0], OSError) and answers[1:] == [*made, *made] and len(made) == 1
    assert index._loaded is None


async def test_a_repository_that_fails_is_served_again(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect below the fetcher ends the fetcher and nothing else: its layers get the next one."""
    expect_log("fetcher of .* has failed and is tried again")
    async with living(store, image) as setting:
        live = setting.use()
        kept = await live.known()
        (old,) = {supply.fetcher for supply in setting.catalog.find(inode_of(image.layer(0).pieces[0].content.name))}
        old._tasks._nursery.start_soon(_fail)  # as a run that ends with what it does not expect
        await trio.sleep(2)
        piece = kept.objects.layer.pieces[0]
        (supply,) = setting.catalog.find(inode_of(image.layer(0).pieces[0].content.name))
        assert supply.fetcher is not old
        assert bytes(await supply.fetcher.read(supply.layer, piece, 0, 5)) == b"first"
        live.uses.change(-1)
        await trio.sleep(3 * LINGER)
        assert setting.registry.closed and not setting.layers.repositories()


async def _fail() -> None:
    raise ZeroDivisionError


async def test_a_waiter_for_what_fails_is_reported(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread, a descriptor, or a defect of ours: all who wait get an error, and the next one has a try of his own."""
    expect_log("TOC of layer .* has failed: no threads")
    async with trio.open_nursery() as nursery:
        setting = resolver(store, image, nursery)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lazyfs.containerd.resolver.load_layer", _no_threads)
            with trio.fail_after(30), pytest.RaisesGroup(*[pytest.RaisesExc(LocalError, match="no threads")] * 2):
                async with trio.open_nursery() as asking:
                    for _ in range(2):
                        asking.start_soon(setting.resolve, image.claim(0))
        await setting.resolve(image.claim(0))
        nursery.cancel_scope.cancel()


async def test_a_waiter_for_an_image_that_fails_is_reported(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """The same where its manifest cannot even be asked for."""
    expect_log("image of .* has failed: no threads")
    async with trio.open_nursery() as nursery:
        setting = resolver(store, image, nursery)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lazyfs.containerd.resolver.resolve_manifest", _no_threads)
            with trio.fail_after(30), pytest.raises(LocalError, match="no threads"):
                await setting.resolve(image.claim(0))
        await setting.resolve(image.claim(0))
        nursery.cancel_scope.cancel()


async def _no_threads(*_: object, **__: object) -> None:
    raise OSError("no threads")
