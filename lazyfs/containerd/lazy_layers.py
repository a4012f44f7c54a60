"""The lazy layers of containerds: which have snapshots, and which are live (lazyfs/live).

A layer is live while a container's root is stacked on it, and while its pull goes on. A snapshot that only exists costs no memory. Layers of
one repository share its source.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

import trio

from lazyfs.errors import LazyfsError
from lazyfs.format.dialect import TocClaim
from lazyfs.format.dialects import dialect_named
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor
from lazyfs.image.layer import Layer
from lazyfs.live.layer import LayerIndexer, LiveLayer
from lazyfs.live.layer import name_of as live_name
from lazyfs.live.layers import Layers
from lazyfs.live.lifecycle import State
from lazyfs.live.pulls import Pulls
from lazyfs.live.source import LiveSource, OpenSource, Sources
from lazyfs.snapshots.snapshot import LazyLayer
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_RESUME_PATIENCE: Final = 10.0
"""Seconds between the starts of two pulls that are resumed, unless the first ends sooner: each takes memory."""


class LazyLayers:
    """The lazy layers of all containerds. Not thread-safe, except `find`."""

    def __init__(self, sources: Sources, layers: Layers, pulls: Pulls, open_source: OpenSource, tasks: Supervisor) -> None:
        """`open_source` opens a repository, `docker://HOST/REPO`."""
        self._sources = sources
        self._layers = layers
        self._pulls = pulls
        self._open_source = open_source
        self._tasks = tasks
        self._snapshots: Counter[tuple[str, Digest]] = Counter()
        """How many snapshots each layer has, in all containerds; by its name and its TOC."""
        self.quiet_period = pulls.quiet_period

    def add(self, lazy: LazyLayer) -> None:
        """Count a new snapshot of the layer."""
        self._snapshots[name_of(lazy), lazy.toc_digest] += 1

    def drop(self, lazy: LazyLayer) -> None:
        """Count a removed snapshot. When the last one of all containerds is removed, the layer's pull stops."""
        key = name_of(lazy), lazy.toc_digest
        self._snapshots[key] -= 1
        if not self._snapshots[key]:
            del self._snapshots[key]
            live = self.find(lazy)
            if live is not None:
                self._pulls.stop(live)

    def documents(self) -> set[Digest]:
        """The TOCs of all layers with snapshots: they must stay in the store."""
        return {toc_digest for _, toc_digest in self._snapshots}

    def repository(self, name: str) -> LiveSource:
        """The source of `docker://HOST/REPO`. Raises UsageError, LocalError. It stays open while it is used, and a while longer."""
        return self._sources.shared(name, self._open_source)

    def repositories(self) -> list[LiveSource]:
        """All live sources."""
        return self._sources.all_shared()

    @property
    def live(self) -> dict[str, LiveLayer]:
        """The live layers, by name."""
        return {name: live for name, live in self._layers.live.items() if live.source.is_shared}

    def find(self, lazy: LazyLayer) -> LiveLayer | None:
        """The live layer; None if it is not live. For any thread."""
        return self._layers.live.get(name_of(lazy))

    def is_known(self, layer: Layer) -> bool:
        """Whether the layer is indexed, for any image."""
        return self._layers.is_known(layer)

    def use(self, lazy: LazyLayer, index: LayerIndexer | None = None) -> LiveLayer:
        """Acquire the live layer. `index`: if the caller has it. Raises UsageError, LocalError."""
        return self._layers.use(self.repository(lazy.reference), layer_of(lazy), index)

    def pull(self, lazy: LazyLayer, index: LayerIndexer | None = None) -> LiveLayer:
        """Start to fetch the whole layer, after what readers wait for; it is live until then. `index` and errors as in `use`."""
        live = self.use(lazy, index)
        self._pulls.begin(live)
        live.uses.change(-1)
        return live

    async def fetch_prefix(self, index: LayerIndexer, repository: str) -> None:
        """Fetch a layer's prefix before it has a snapshot. Errors are not raised."""
        await self._pulls.fetch_prefix(index, self.repository(repository))

    async def resume(self, layers: Iterable[LazyLayer]) -> None:
        """Resume the pulls of an earlier process.

        A layer that was once complete is skipped, because the store may have evicted parts of it; so is one that was removed meanwhile.
        """
        for lazy in layers:
            await self._tasks.attempt("pull of an earlier process", self._resume, lazy, subject=str(lazy.digest))

    async def _resume(self, lazy: LazyLayer) -> None:
        try:
            if await self._pulls.was_complete(layer_of(lazy)) or not self._snapshots[name_of(lazy), lazy.toc_digest]:
                return
            pull = self.pull(lazy).pull
        except LazyfsError as error:
            _log.warning("cannot continue the pull of layer %s of %s: %s", lazy.digest, lazy.reference, error)
            return
        if pull is not None:  # else it has ended already
            with trio.move_on_after(_RESUME_PATIENCE):
                await pull.lifecycle.wait_for(State.ENDED)


def name_of(lazy: LazyLayer) -> str:
    """The name of the live layer."""
    return live_name(lazy.reference, lazy.digest, lazy.toc_digest, lazy.dialect)


def layer_of(lazy: LazyLayer) -> Layer:
    """The layer, as its manifest's descriptor describes it, without entries. Raises StoreUnusable for a dialect of a later version."""
    dialect = dialect_named(lazy.dialect)
    annotations = TocClaim(dialect, lazy.toc_digest).annotations
    descriptor = Descriptor(lazy.media_type, lazy.digest, lazy.size, annotations, None, {})
    return Layer(descriptor, lazy.toc_digest, lazy.toc_offset, (), dialect=dialect)
