"""One layer that something uses, and what of it is in memory: its objects, but not its entries.

A Layer with entries is what was parsed, and large: 120,000 directories take 25 MB. Once a layer is indexed, its objects hold what the gate
and the fetcher need. What needs the entries later (a record of what a mount touched) reads the TOC again.
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
    """What is kept of a layer."""

    objects: LayerObjects
    prefetch_end: int
    """See Wanted."""

    @property
    def wanted(self) -> Wanted:
        """All of the layer, for a background fetch."""
        return Wanted(self.objects.layer, self.prefetch_end)


class LayerIndexer:
    """A layer that was loaded, indexed once, by the first who asks. It takes 5 ms a thousand files, and lets go of the entries."""

    def __init__(self, layer: Layer) -> None:
        self.layer: Final = layer.without_entries()
        self._loaded: Layer | None = layer
        self._lock = trio.Lock()
        self._indexed: IndexedLayer | None = None

    async def indexed(self, known: LayerObjects | None = None) -> IndexedLayer:
        """`known`: the same layer's objects, where another image has them. Raises what went wrong; the next to ask tries again.

        Cancelled: it is indexed all the same.
        """
        async with self._lock:
            indexed = self._indexed
            if indexed is None:
                assert self._loaded is not None
                with trio.CancelScope(shield=True):
                    indexed = await trio.to_thread.run_sync(index_layer, self._loaded, known)
                assert indexed is not None  # nothing ends the scope
                self._indexed, self._loaded = indexed, None
            return indexed


class Pull:
    """All of a layer shall come. Its states are in lifecycle.py."""

    def __init__(self) -> None:
        self.lifecycle = Lifecycle(PULL)
        self.scope = trio.CancelScope()


class LiveLayer:
    """One layer of one source. `Layers` makes it. Its states are in lifecycle.py."""

    def __init__(self, layer: Layer, source: LiveSource, index: LayerIndexer | None) -> None:
        """`index`: None where the layer is to be loaded from the store."""
        self.layer: Final = layer.without_entries()
        self.source: Final = source
        self.name: Final = name_of(source.name, layer.digest, layer.toc_digest, layer.dialect.name)
        self.uses = Uses()
        self.lifecycle = Lifecycle(LAYER)
        self.index = index
        """Until the layer is known."""
        self.kept: IndexedLayer | None = None
        """Once it is known."""
        self.pull: Pull | None = None
        """One for all who want all of it."""
        self.trouble = ""
        """Why the layer is not known; empty while nothing is wrong."""

    @property
    def is_known(self) -> bool:
        """Whether the gate knows what it holds."""
        return self.lifecycle.is_in(State.KNOWN)

    async def known(self) -> IndexedLayer:
        """What is kept of it, as soon as it is known. Raises StoreUnusable: it ended before."""
        await self.lifecycle.wait_for(State.KNOWN)
        if self.kept is None:
            raise StoreUnusable(f"layer {self.layer.digest} is no longer in use", hint="Try again")
        return self.kept

    def note_failure(self, error: Exception) -> None:
        """To index it has failed, and is tried again."""
        self.trouble = f"what is missing cannot be fetched: {error}"


def name_of(source: str, digest: Digest, toc_digest: Digest, dialect: str) -> str:
    """What a live layer goes by: where it is, and which TOC is believed of it, read in which dialect."""
    return f"{source}@{digest} {dialect} {toc_digest}"


def index_layer(layer: Layer, known: LayerObjects | None = None) -> IndexedLayer:
    """Blocking. What is kept of a layer that was loaded."""
    return IndexedLayer(known or LayerObjects(key_of(layer), LayerBlob.of(layer)), layer.prefetch_end)


def load_again(store: Store, layer: Layer) -> Layer | None:
    """Blocking. A layer with its entries, if its TOC is in the store. It was accepted, perhaps by an earlier version."""
    data = store.document(layer.toc_digest)
    if data is None:
        return None
    return layer._replace(entries=layer.dialect.entries(data, layer.toc_offset, f"layer {layer.digest}", accepted=True))
