"""Live layers: those that containers' roots, images or pulls use. The gate knows them, and who fetches what they lack.

A layer without users costs no memory. A new user does not wait until the layer is indexed: the gate does (gate/catalog.py), at
the first miss.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from lazyfs.errors import LazyfsError
from lazyfs.gate.catalog import Catalog, key_of
from lazyfs.image.layer import Layer, load_layer
from lazyfs.live.layer import LayerIndexer, LiveLayer, load_again, name_of
from lazyfs.live.lifecycle import State
from lazyfs.live.source import LiveSource
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_SLOWEST: Final = 60.0


class Layers:
    """All live layers. For the event loop."""

    def __init__(self, store: Store, catalog: Catalog, tasks: Supervisor) -> None:
        self._store = store
        self._catalog = catalog
        self._tasks = tasks
        # One layer at a time: this is pure Python, and several threads would only hold up the event loop longer.
        self._indexing = trio.CapacityLimiter(1)
        self.live: dict[str, LiveLayer] = {}
        """By name (see layer.py)."""

    def use(self, source: LiveSource, layer: Layer, index: LayerIndexer | None = None) -> LiveLayer:
        """The live layer, with one use added. `layer` may have no entries; `index` is given if it was loaded already."""
        name = name_of(source.name, layer.digest, layer.toc_digest, layer.dialect.name)
        live = self.live.get(name)
        if live is None or live.source is not source:
            if live is not None:
                self._catalog.remove(name)  # its source is about to close; the gate waits for the new one
            live = self.live[name] = LiveLayer(layer, source, index)
            source.uses.change(+1)
            self._catalog.expect(name)
            self._tasks.start_soon("layer", self._run, live, subject=str(layer.digest))
        live.uses.change(+1)
        return live

    def is_known(self, layer: Layer) -> bool:
        """Whether the layer is indexed, for any image."""
        return self._catalog.known(key_of(layer)) is not None

    async def _run(self, live: LiveLayer) -> None:
        try:
            async with trio.open_nursery() as nursery:
                inner = self._tasks.within(nursery)
                inner.keep_running("layer", self._run_until_unused, live, subject=str(live.layer.digest))
        finally:
            self._end(live)
            live.source.uses.change(-1)

    async def _run_until_unused(self, live: LiveLayer) -> None:
        """Run until the layer has been unused for a while, known or not."""
        async with trio.open_nursery() as nursery:
            if not live.is_known:
                indexing = self._tasks.within(nursery)
                digest = str(live.layer.digest)
                indexing.keep_running("layer index", self._index, live, subject=digest, failed=live.note_failure)
            await live.uses.wait_until_unused(lambda: live.source.linger)
            self._end(live)  # before the tasks: an ending layer must not be found
            nursery.cancel_scope.cancel()

    def _end(self, live: LiveLayer) -> None:
        if live.lifecycle.is_in(State.ENDED):
            return
        live.lifecycle.move(State.ENDED)
        live.source.withdraw(live.name)
        if self.live.get(live.name) is live:  # else the name belongs to another layer by now
            del self.live[live.name]
            self._catalog.remove(live.name)
            if live.uses.count:
                self._catalog.expect(live.name)  # its content is unknown then, not absent

    async def _index(self, live: LiveLayer) -> None:
        await live.source.ready()
        if live.index is None:
            live.index = LayerIndexer(await self._load(live))
        async with self._indexing:
            kept = await live.index.indexed(self._catalog.known(key_of(live.layer)))
        if live.lifecycle.is_in(State.ENDED):
            return  # the layer ended while the thread was indexing
        live.kept, live.index, live.trouble = kept, None, ""
        live.source.offer(live.name, kept.objects)
        live.lifecycle.move(State.KNOWN)

    async def _load(self, live: LiveLayer) -> Layer:
        """Load the layer from the store. If its TOC is lost, fetch it from the source, however long that takes."""
        pause = _FIRST_PAUSE
        while True:
            try:
                loaded = await trio.to_thread.run_sync(load_again, self._store, live.layer)
                if loaded is None:
                    loaded = await load_layer(live.source.source, self._store, live.layer.descriptor, accepted=True)
            except LazyfsError as error:
                if str(error) != live.trouble:
                    _log.warning("cannot fetch the TOC of layer %s of %s: %s", live.layer.digest, live.source.name, error)
                live.trouble = str(error)
                await trio.sleep(pause)
                pause = min(2 * pause, _SLOWEST)
            else:
                live.trouble = ""
                return loaded
