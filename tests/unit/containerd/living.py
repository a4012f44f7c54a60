"""The lazy layers of a daemon of which nothing else is there, against a registry that a test holds in its hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.containerd.lazy_layers import LazyLayers, name_of
from lazyfs.fetch.background import measure_missing
from lazyfs.gate.catalog import Catalog
from lazyfs.gate.inode import inode_of
from lazyfs.live.layer import LiveLayer
from lazyfs.live.layers import Layers
from lazyfs.live.lifecycle import State
from lazyfs.live.pulls import Pulls
from lazyfs.live.source import OpenSource, Sources
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor
from tests.unit.containerd.scripted import REPOSITORY, ScriptedImage, ScriptedRegistry

LINGER = 31.0


def lazy_layers(
    store: Store, catalog: Catalog, tasks: Supervisor, open_source: OpenSource, *, background: bool = True
) -> LazyLayers:
    """As a daemon makes them."""
    sources, layers = Sources(store, catalog, tasks), Layers(store, catalog, tasks)
    return LazyLayers(sources, layers, Pulls(store, tasks, rest=background), open_source, tasks)


class Setting:
    """The lazy layers of a daemon of which nothing else is there."""

    def __init__(self, store: Store, image: ScriptedImage, nursery: trio.Nursery, *, background: bool = True) -> None:
        self._image = image
        self._store = store
        self.registries = [image.registry()]
        """The last one will be, or is, whom the repository's name leads to; those before it were opened earlier."""
        self.opened = 0
        self.catalog = Catalog()
        self.catalog.begin()
        self.layers = lazy_layers(store, self.catalog, Supervisor(nursery), self._open, background=background)

    @property
    def registry(self) -> ScriptedRegistry:
        return self.registries[-1]

    def _open(self, repository: str) -> ScriptedRegistry:
        assert repository == REPOSITORY
        self.opened += 1
        if self.opened > len(self.registries):
            self.registries.append(self._image.registry())
        return self.registry

    def keep_tocs(self) -> None:
        """As when the layers were resolved."""
        for number, lazy in enumerate(self._image.lazy):
            self._store.keep_document(lazy.toc_digest, self._image.toc(number))

    def use(self, number: int = 0) -> LiveLayer:
        return self.layers.use(self._image.lazy[number])

    def pull(self, number: int = 0) -> LiveLayer:
        """As for a snapshot."""
        self.layers.add(self._image.lazy[number])
        self.layers.pull(self._image.lazy[number])
        return self.layers.live[name_of(self._image.lazy[number])]

    def stop(self, number: int = 0) -> None:
        """Its snapshot is removed."""
        self.layers.drop(self._image.lazy[number])

    def missing(self, number: int = 0) -> int:
        return measure_missing(self._store, [self._image.layer(number)]).chunks

    def holds(self, number: int = 0) -> bool:
        """Whether the gate would find a source of the layer's first file."""
        return bool(self.catalog.find(inode_of(self._image.layer(number).pieces[0].content.name)))


async def ended(live: LiveLayer) -> None:
    """The layer's pull has ended."""
    if live.pull is not None:
        await live.pull.lifecycle.wait_for(State.ENDED)


@asynccontextmanager
async def living(store: Store, image: ScriptedImage, *, background: bool = True) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        setting = Setting(store, image, nursery, background=background)
        setting.keep_tocs()
        yield setting
        nursery.cancel_scope.cancel()
