"""Nobody waits for ever: what fails in a way that nobody expects is told to who waits, logged, and tried again."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from lazyfs.containerd import lazy_layers
from lazyfs.containerd.lazy_layers import Index, LazyLayers, descriptor_of
from lazyfs.containerd.resolving import Resolving
from lazyfs.errors import LocalError
from lazyfs.fetch.piece import LayerBlob
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.gate.inode import inode_of
from lazyfs.image.layer import Layer
from lazyfs.store.store import Store
from lazyfs.tasks import Guarded, Supervisor
from tests.conftest import LogWatch
from tests.unit.containerd.living import LINGER, living
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.fetch.scripted import until


def resolving(store: Store, image: ScriptedImage, nursery: trio.Nursery) -> Resolving:
    """What resolves, where a task that fails ends nothing else."""
    tasks = Supervisor(nursery)
    return Resolving(store, LazyLayers(store, Catalog(), Guarded(tasks), lambda _: image.registry()), tasks)


async def test_a_layer_that_cannot_be_indexed_is_tried_again(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread or no memory for a moment: why is told to those who ask, nobody waits for ever, and later it succeeds."""
    expect_log("the index of layer .* has failed and is tried again in .* s: no room")
    make, tries = lazy_layers._index, iter(range(3))

    def fail(layer: Layer) -> LayerObjects:
        if next(tries, None) is not None:
            raise OSError("no room")
        return make(layer)

    monkeypatch.setattr(lazy_layers, "_index", fail)
    async with living(store, image) as it:
        live = it.use()
        await until(lambda: live.trouble)
        assert "no room" in live.trouble and not live.indexed.is_set()
        await live.indexed.wait()
        assert it.holds() and not live.trouble


async def test_whoever_waits_for_an_index_makes_it_himself_where_the_first_failed(
    image: ScriptedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is told what went wrong; the others have what they wanted, made once."""
    lazy = image.lazy[0]
    layer = Layer(descriptor_of(lazy), lazy.toc_digest, lazy.toc_offset, ())
    made: list[LayerObjects] = []
    answers: list[LayerObjects | Exception] = []

    def fail_first(layer: Layer) -> LayerObjects:
        if not answers:
            raise OSError("no room")
        made.append(LayerObjects("key", LayerBlob.of(layer)))
        return made[-1]

    async def ask() -> None:
        try:
            answers.append(await index.objects())
        except OSError as error:
            answers.append(error)

    monkeypatch.setattr(lazy_layers, "_index", fail_first)
    index = Index(layer)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
    assert isinstance(answers[0], OSError) and answers[1:] == [*made, *made] and len(made) == 1


async def test_a_repository_that_fails_is_served_again(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect below the fetcher ends the fetcher and nothing else: its layers get the next one."""
    expect_log("what fetches from .* has failed and is tried again")
    async with living(store, image) as it:
        live = it.use()
        await live.indexed.wait()
        (old,) = {supply.fetcher for supply in it.catalog.find(inode_of(image.layer(0).pieces[0].content.name))}
        old._tasks._nursery.start_soon(_fail)  # as a run that ends with what it does not expect
        await trio.sleep(2)
        piece = live.wanted.layer.pieces[0] if live.wanted else None
        (supply,) = it.catalog.find(inode_of(image.layer(0).pieces[0].content.name))
        assert piece and supply.fetcher is not old
        assert bytes(await supply.fetcher.read(supply.layer, piece, 0, 5)) == b"first"
        it.layers.leave(live.name)
        await trio.sleep(3 * LINGER)
        assert it.registry.closed and not it.layers.repositories()


async def _fail() -> None:
    raise ZeroDivisionError


async def test_whoever_waits_for_what_fails_is_told(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread, a descriptor, or a defect of ours: all who wait get an error, and the next one has a try of his own."""
    expect_log("TOC of layer .* has failed: no threads")
    async with trio.open_nursery() as nursery:
        it = resolving(store, image, nursery)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lazyfs.containerd.resolving.load_layer", _no_threads)
            with trio.fail_after(30), pytest.RaisesGroup(*[pytest.RaisesExc(LocalError, match="no threads")] * 2):
                async with trio.open_nursery() as asking:
                    for _ in range(2):
                        asking.start_soon(it.resolve, image.claim(0))
        await it.resolve(image.claim(0))
        nursery.cancel_scope.cancel()


async def test_whoever_waits_for_an_image_that_fails_is_told(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """The same where its manifest cannot even be asked for."""
    expect_log("image of .* has failed: no threads")
    async with trio.open_nursery() as nursery:
        it = resolving(store, image, nursery)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lazyfs.containerd.resolving.resolve_manifest", _no_threads)
            with trio.fail_after(30), pytest.raises(LocalError, match="no threads"):
                await it.resolve(image.claim(0))
        await it.resolve(image.claim(0))
        nursery.cancel_scope.cancel()


async def _no_threads(*_: object, **__: object) -> None:
    raise OSError("no threads")
