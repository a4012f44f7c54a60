"""Layers that containerd asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import trio

from lazyfs.containerd.lazy_layers import LazyLayers
from lazyfs.containerd.resolver import LayerResolver
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.errors import LocalError, SnapshotExists
from lazyfs.gate.catalog import Catalog
from lazyfs.native.layers import LayerMounts
from lazyfs.store.store import Store
from tests.unit.containerd.living import lazy_layers
from tests.unit.containerd.scripted import ScriptedImage, ScriptedRegistry
from tests.unit.surprises.scene import PATIENCE, Scenario, Scene, until


class Setting(NamedTuple):
    """What a lazyfsd with a plugin has of it."""

    image: ScriptedImage
    layers: LazyLayers
    resolver: LayerResolver
    snapshotter: Snapshotter
    store: Store


async def _stay_open(_: ScriptedRegistry) -> None:
    await trio.lowlevel.checkpoint()


@asynccontextmanager
async def setting(scene: Scene) -> AsyncIterator[Setting]:
    # At the end all is cancelled at once, and what is closed may be asked something yet.
    scene.patch.setattr(ScriptedRegistry, "aclose", _stay_open)
    image = ScriptedImage(scene.folder / "image", {"a": b"first" * 1000}, {"b": b"second" * 1000})
    store = scene.store()
    async with scene.tasks() as tasks, trio.open_nursery() as nursery:
        inner = tasks.within(nursery)
        layers = lazy_layers(store, Catalog(), inner, lambda _: image.registry())
        resolver = LayerResolver(store, layers, inner)
        mounts = LayerMounts(store.directory.path)
        snapshotter = Snapshotter(store, store.directory.path / "containerd" / "c", layers, resolver, mounts, inner)
        scene.stack.callback(snapshotter.close)
        yield Setting(image, layers, resolver, snapshotter, store)
        nursery.cancel_scope.cancel()


async def reported(scene: Scene) -> None:
    """All callers that wait for the layer get an error; the next one gets the layer."""
    async with setting(scene) as found:
        with trio.fail_after(PATIENCE):
            with pytest.raises(LocalError, match="surprise"):
                await found.resolver.resolve(found.image.claim(0))
            await found.resolver.resolve(found.image.claim(0))


async def resolved(scene: Scene) -> None:
    """What was only to save time is done without."""
    async with setting(scene) as found:
        with trio.fail_after(PATIENCE):
            await found.resolver.resolve(found.image.claim(0))
            await until(scene.failures.counts)


def started(kind: str) -> Scenario:
    """A lazyfsd with the snapshots of an earlier one: two lazy layers, and a leftover directory."""

    async def scenario(scene: Scene) -> None:
        async with setting(scene) as found:
            for number, lazy in enumerate(found.image.lazy):
                found.store.keep_document(lazy.toc_digest, found.image.toc(number))
                found.snapshotter.snapshots.commit_lazy(f"{number}", "", {}, lazy)
            found.snapshotter._found = [each for page in found.snapshotter.snapshots.pages() for each in page]
            left = found.snapshotter._folders.of(77)
            left.mkdir(parents=True)
            await found.snapshotter.start()
            await scene.until_failed(kind)
            await found.snapshotter.cleanup()
            await until(lambda: not left.exists())

    return scenario


async def rooted(scene: Scene) -> None:
    """A lazyfsd that finds a container's root mounted, on a lazy layer: its layers live all the same."""
    async with setting(scene) as found:
        lazy = found.image.lazy[0]
        found.store.keep_document(lazy.toc_digest, found.image.toc(0))
        found.snapshotter.snapshots.commit_lazy("0", "", {}, lazy)
        root = found.snapshotter.snapshots.create("root", "0", "active", {})
        found.snapshotter._found = [each for page in found.snapshotter.snapshots.pages() for each in page]
        scene.patch.setattr(found.snapshotter.roots, "mounted", lambda: [root.id])
        await found.snapshotter.start()
        await until(lambda: root.id in found.snapshotter._used_layers)


def asked(make: Callable[[Setting], Awaitable[object]]) -> Scenario:
    """A call of containerd that leaves something for later: the call succeeds, and so does the next one."""

    async def scenario(scene: Scene) -> None:
        async with setting(scene) as found:
            with trio.fail_after(PATIENCE):
                await make(found)
                await until(scene.failures.counts)
                await found.snapshotter.cleanup()

    return scenario


async def committed(found: Setting) -> None:
    """A lazy layer; its disk usage is known when it is requested."""
    claim = found.image.claim(0)
    with pytest.raises(SnapshotExists):
        await found.snapshotter._commit_lazy(claim, "", {})
    found.layers.quiet_period.note_request()


async def removed(found: Setting) -> None:
    """An ordinary snapshot."""
    found.snapshotter.snapshots.create("key", "", "active", {})
    await found.snapshotter.remove("key")


async def cleaned(found: Setting) -> None:
    """A garbage collection."""
    await found.snapshotter.cleanup()
