"""The live parts of a daemon without the rest of it, with scripted sources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.containerd.lazy_layers import layer_of
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import Descriptor, ImageConfig, Manifest
from lazyfs.gate.catalog import Catalog
from lazyfs.gate.inode import inode_of
from lazyfs.image.image import Image
from lazyfs.image.layer import Layer
from lazyfs.live.image import Images, LiveImage
from lazyfs.live.layer import LayerIndexer, LiveLayer, load_again
from lazyfs.live.layers import Layers
from lazyfs.live.pulls import Pulls
from lazyfs.live.source import LiveSource, Sources
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor
from tests.unit.containerd.scripted import REPOSITORY, ScriptedImage
from tests.unit.fetch.scripted import ScriptedSource

CONFIG = Descriptor("", digest_of(b""), 0, {}, None, {})


class Slow(ScriptedSource):
    """A source of the image's blobs, slow enough that two fetches overlap. Shows whether it was closed."""

    def __init__(self, blobs: list[bytes]) -> None:
        super().__init__(*blobs)
        self.rate = 1000
        self.closed = False
        self.may_close = trio.Event()
        self.may_close.set()

    async def aclose(self) -> None:
        await self.may_close.wait()
        self.closed = True


class Living:
    """What a test gets."""

    def __init__(self, store: Store, image: ScriptedImage, nursery: trio.Nursery) -> None:
        tasks = Supervisor(nursery)
        self.store = store
        self.failures = tasks.failures
        self.catalog = Catalog()
        self.catalog.begin()
        self.sources = Sources(store, self.catalog, tasks)
        self.layers = Layers(store, self.catalog, tasks)
        self.pulls = Pulls(store, tasks)
        self.images = Images(store, self.catalog, self.sources, self.layers, tasks)
        self.opened: list[Slow] = []
        """All sources in order."""
        self._image = image
        for number, lazy in enumerate(image.lazy):
            store.keep_document(lazy.toc_digest, image.toc(number))
        self._loaded = [load_again(store, layer_of(lazy)) for lazy in image.lazy]

    def source(self) -> LiveSource:
        """The shared source of the repository."""
        return self.sources.shared(REPOSITORY, lambda _: self.open())

    def open(self) -> Slow:
        """Open a source of the image's blobs."""
        self.opened.append(Slow(self._image.blobs))
        return self.opened[-1]

    def use(self, number: int = 0) -> LiveLayer:
        """Use a layer of the image, as a container's root does."""
        return self.layers.use(self.source(), layer_of(self._image.lazy[number]))

    def mount(self, name: str = "first", *numbers: int, background: bool = False) -> LiveImage:
        """Mount an image of that name, with some of the layers."""
        digest = digest_of(name.encode())
        known = self.images.live.get(f"docker://registry.test/{name}@{digest}")
        if known is not None:
            known.use(background=background)
            return known
        layers = tuple(self.loaded(number) for number in numbers or (0,))
        manifest = Manifest("", CONFIG, tuple(layer.descriptor for layer in layers), {}, {}, b"")
        image = Image(f"docker://registry.test/{name}@{digest}", digest, manifest, ImageConfig((), "", "", ""))
        return self.images.add(image, layers, self.open(), background=background)

    def loaded(self, number: int) -> Layer:
        """A layer with its entries."""
        layer = self._loaded[number]
        assert layer is not None
        return layer

    def index(self, number: int) -> LayerIndexer:
        """As the caller that has resolved the layer has it."""
        return LayerIndexer(self.loaded(number))

    def blob(self, number: int = 0) -> LayerBlob:
        return self._image.layer(number)

    def holds(self, number: int = 0) -> bool:
        """Whether the gate would find a fetcher for the layer's first file."""
        return bool(self.catalog.find(self.inode(number)))

    def inode(self, number: int = 0) -> int:
        """The inode number of the layer's first file."""
        return inode_of(self.blob(number).pieces[0].content.name)

    @property
    def sent(self) -> int:
        """Bytes of all sources."""
        return sum(source.sent for source in self.opened)


@asynccontextmanager
async def living(store: Store, image: ScriptedImage) -> AsyncIterator[Living]:
    async with trio.open_nursery() as nursery:
        yield Living(store, image, nursery)
        nursery.cancel_scope.cancel()
