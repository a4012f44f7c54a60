"""A live layer, and what it keeps in memory: its objects, but not its entries.

A Layer with entries is the result of parsing, and large: 120,000 directories take 25 MB. Once a layer is indexed, its objects
hold all that the gate and the fetcher need. Where the entries are needed later (for the record of a mount), the TOC is read
again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import trio

from lazyfs.errors import StoreUnusable
from lazyfs.fetch.background import Wanted
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.digest import Digest
from lazyfs.gate.catalog import LayerObjects, key_of
from lazyfs.image.layer import Layer
from lazyfs.live.lifecycle import LAYER, PULL, Lifecycle, State
from lazyfs.live.source import LiveSource
from lazyfs.live.uses import Uses
from lazyfs.store.store import Store


class IndexedLayer(NamedTuple):
    """What is kept of an indexed layer."""

    objects: LayerObjects
    prefetch_end: int
    """See Wanted."""

    @property
    def wanted(self) -> Wanted:
        """The whole layer, for a background fetch."""
        return Wanted(self.objects.layer, self.prefetch_end)


class LayerIndexer:
    """Indexes a loaded layer once, for the first caller that asks, and then drops its entries. Takes 5 ms for a thousand files."""

    def __init__(self, layer: Layer) -> None:
        self.layer: Final = layer.without_entries()
        self._loaded: Layer | None = layer
        self._lock = trio.Lock()
        self._indexed: IndexedLayer | None = None

    async def indexed(self, known: LayerObjects | None = None) -> IndexedLayer:
        """`known`: the objects of the same layer, if another image has them. Raises the error of indexing; the next caller
        tries again.

        Cancelled: it is indexed all the same.
        """
        async with self._lock:
            indexed = self._indexed
            if indexed is None:
                assert self._loaded is not None
                with trio.CancelScope(shield=True):
                    indexed = await trio.to_thread.run_sync(index_layer, self._loaded, known)
                assert indexed is not None  # nothing cancels this scope
                self._indexed, self._loaded = indexed, None
            return indexed


class Pull:
    """The pull of a layer: all of it is to be fetched. Its states are in lifecycle.py."""

    def __init__(self) -> None:
        self.lifecycle = Lifecycle(PULL)
        self.scope = trio.CancelScope()


class LiveLayer:
    """One layer of one source. Made by `Layers`. Its states are in lifecycle.py."""

    def __init__(self, layer: Layer, source: LiveSource, index: LayerIndexer | None) -> None:
        """`index`: None if the layer has to be loaded from the store."""
        self.layer: Final = layer.without_entries()
        self.source: Final = source
        self.name: Final = name_of(source.name, layer.digest, layer.toc_digest, layer.dialect.name)
        self.uses = Uses()
        self.lifecycle = Lifecycle(LAYER)
        self.index = index
        """Until the layer is known."""
        self.kept: IndexedLayer | None = None
        """Once the layer is known."""
        self.pull: Pull | None = None
        """Shared by all who want all of the layer."""
        self.trouble = ""
        """Why the layer is not known; empty while all is well."""

    @property
    def is_known(self) -> bool:
        """Whether the gate knows its objects."""
        return self.lifecycle.is_in(State.KNOWN)

    async def known(self) -> IndexedLayer:
        """Wait until the layer is known. Raises StoreUnusable if it ends before that."""
        await self.lifecycle.wait_for(State.KNOWN)
        if self.kept is None:
            raise StoreUnusable(f"layer {self.layer.digest} is no longer in use", hint="Try again")
        return self.kept

    def note_failure(self, error: Exception) -> None:
        """Indexing has failed, and will be tried again."""
        self.trouble = f"what is missing cannot be fetched: {error}"


def name_of(source: str, digest: Digest, toc_digest: Digest, dialect: str) -> str:
    """The name of a live layer: its source, and which TOC in which dialect describes it."""
    return f"{source}@{digest} {dialect} {toc_digest}"


def index_layer(layer: Layer, known: LayerObjects | None = None) -> IndexedLayer:
    """Index a loaded layer. Blocking."""
    return IndexedLayer(known or LayerObjects(key_of(layer), LayerBlob.of(layer)), layer.prefetch_end)


def load_again(store: Store, layer: Layer) -> Layer | None:
    """The layer with its entries; None if its TOC is not in the store. No bounds apply: it was accepted before, perhaps by an
    earlier version. Blocking."""
    data = store.document(layer.toc_digest)
    if data is None:
        return None
    return layer._replace(entries=layer.dialect.entries(data, layer.toc_offset, f"layer {layer.digest}", accepted=True))
