"""Lazy layers that something uses: indexed for the gate, with somebody who brings what is missing of them.

A layer lives while a container's root is stacked on it, and while the rest of its pull goes on; a snapshot that merely exists costs
no memory. Layers of one repository share its connections and its fetcher, and all that comes from one registry gives way to
whoever waits for that registry.

Who mounts a root does not wait for its layers to be indexed: the gate does (gate/catalog.py), at the first miss.

A pull brings a layer's prefix at once, because the container that will be started is going to wait for it: each layer by itself, for they
come one after the other. The rest comes when all is quiet, layer by layer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from lazyfs.containerd.lull import Lull
from lazyfs.containerd.repository import LiveRepository
from lazyfs.errors import LazyfsError
from lazyfs.fetch.background import Background, Wanted
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.fetch.traffic import Traffic
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor
from lazyfs.format.toc import parse_toc
from lazyfs.gate.catalog import Catalog, LayerObjects, key_of
from lazyfs.image.layer import TOC_DIGEST, Layer, load_layer
from lazyfs.kernel.heap import give_back
from lazyfs.live.uses import Uses
from lazyfs.snapshots.snapshot import LazyLayer
from lazyfs.source.protocol import ImageSource
from lazyfs.store.store import Store
from lazyfs.tasks import Tasks, keep_running

_log = logging.getLogger(__name__)

_RESUME_PATIENCE: Final = 10.0
_AHEAD: Final = 30.0
"""Seconds for a prefix that no snapshot needs yet."""
_FIRST_PAUSE: Final = 1.0
_SLOWEST: Final = 60.0

OpenSource = Callable[[str], ImageSource]
"""Who holds the repository `docker://HOST/REPO`. Raises UsageError, LocalError."""


class Index:
    """What a layer holds, made ready for the gate once: by whoever asks first, and it takes 5 ms a thousand files."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._making = trio.Lock()
        self._objects: LayerObjects | None = None

    async def objects(self) -> LayerObjects:
        """Raises what went wrong; whoever waited tries again, and so does the next to ask. Cancelled: it is made all the same."""
        async with self._making:
            if self._objects is None:
                with trio.CancelScope(shield=True):
                    self._objects = await trio.to_thread.run_sync(_index, self.layer)
                assert self._objects is not None
            return self._objects


class LiveLayer:
    """One lazy layer."""

    def __init__(self, lazy: LazyLayer, repository: LiveRepository, index: Index | None) -> None:
        self.lazy = lazy
        self.name = name_of(lazy)
        self.repository = repository
        self.uses = Uses()
        self.index = index
        """Until it is known to the gate; None: to be made of what the store has."""
        self.objects: LayerObjects | None = None
        """Once it is indexed."""
        self.wanted: Wanted | None = None
        """All of it, likewise."""
        self.indexed = trio.Event()
        self.pulling: trio.CancelScope | None = None
        """Around whoever sees to it that all of it comes, once for all its snapshots."""
        self.complete = trio.Event()
        """All of it has come since then, or what has not cannot be had."""
        self.trouble = ""


class LazyLayers:
    """Those that live. Not for threads."""

    def __init__(
        self, store: Store, catalog: Catalog, nursery: Tasks, open_source: OpenSource, *, background: bool = True
    ) -> None:
        """Without `background` nothing of a layer is fetched ahead but its landmark's prefix."""
        self._background = background
        self._store = store
        self._catalog = catalog
        self._nursery = nursery
        self._open_source = open_source
        self._traffic: dict[str, Traffic] = {}
        self._repositories: dict[str, LiveRepository] = {}
        self._snapshots: Counter[tuple[str, Digest]] = Counter()
        """How many there are of each layer, of all containerds; by its name and its TOC."""
        self.live: dict[str, LiveLayer] = {}
        self.lull = Lull()

    def add(self, lazy: LazyLayer) -> None:
        """There is one more snapshot of the layer."""
        self._snapshots[name_of(lazy), lazy.toc_digest] += 1

    def drop(self, lazy: LazyLayer) -> None:
        """There is one less. With the last one, whichever containerd's, the layer's pull stops."""
        key = name_of(lazy), lazy.toc_digest
        self._snapshots[key] -= 1
        if not self._snapshots[key]:
            del self._snapshots[key]
            self._stop_pull(name_of(lazy))

    def documents(self) -> set[Digest]:
        """The TOCs of all layers that there are snapshots of: they must stay in the store."""
        return {toc_digest for _, toc_digest in self._snapshots}

    def repository(self, name: str) -> LiveRepository:
        """`docker://HOST/REPO`, whoever asks first opening it. Raises UsageError. Used only while `uses` says so, and a while longer."""
        known = self._repositories.get(name)
        if known is None:
            known = self._repositories[name] = LiveRepository(name, self._open_source(name))
            self._nursery.start_soon(self._serve_repository, known)
        return known

    def repositories(self) -> list[LiveRepository]:
        """All that live."""
        return list(self._repositories.values())

    def use(self, lazy: LazyLayer, index: Index | None = None) -> LiveLayer:
        """The live layer, counted as used once more. `index`, where it is at hand. Raises UsageError."""
        name = name_of(lazy)
        live = self.live.get(name)
        if live is None:
            live = self.live[name] = LiveLayer(lazy, self.repository(lazy.reference), index)
            live.repository.uses.change(+1)
            self._catalog.expect(name)
            self._nursery.start_soon(self._serve_layer, live)
        live.uses.change(+1)
        return live

    def is_known(self, layer: Layer) -> bool:
        """Whether it is indexed, for whatever image."""
        return self._catalog.known(key_of(layer)) is not None

    def leave(self, name: str) -> None:
        """One use less."""
        live = self.live.get(name)
        if live is not None:
            live.uses.change(-1)

    def pull(self, lazy: LazyLayer, index: Index | None = None) -> LiveLayer:
        """All of the layer shall come, behind what readers wait for; it lives until then. `index` as in `use`. Raises UsageError."""
        live = self.use(lazy, index)
        if live.pulling is None:
            live.pulling, live.complete = trio.CancelScope(), trio.Event()
            self._nursery.start_soon(self._pull, live, live.pulling, live.complete)
        else:
            self.leave(live.name)
        return live

    async def bring_prefix(self, index: Index, repository: str) -> None:
        """A layer's prefix, before there is a snapshot of it: the link has nothing else to do. Ends, whatever happens."""
        end = index.layer.prefetch_end
        if end:
            objects = await index.objects()
            with self.repository(repository).in_use() as live, trio.move_on_after(_AHEAD):
                await live.ready.wait()
                await self._bring(live, [Wanted(objects.layer, end)], rest=False)

    async def resume(self, layers: Iterable[LazyLayer]) -> None:
        """Go on with the pulls of an earlier process, some at a time, because each takes memory while it lasts.

        What had come whole once is left as it is, since the store may have made room of it; so is what was removed meanwhile.
        """
        for lazy in layers:
            complete = await trio.to_thread.run_sync(self._store.note, _completeness(lazy))
            if complete is not None or not self._snapshots[name_of(lazy), lazy.toc_digest]:
                continue
            try:
                live = self.pull(lazy)
            except LazyfsError as error:
                _log.warning("the pull of layer %s cannot go on: %s", lazy.digest, error)
                continue
            with trio.move_on_after(_RESUME_PATIENCE):  # of a registry that is away
                await live.complete.wait()

    async def _pull(self, live: LiveLayer, scope: trio.CancelScope, complete: trio.Event) -> None:
        try:
            with scope:
                await live.indexed.wait()
                assert live.wanted is not None
                await self._bring(live.repository, [live.wanted], rest=False)
                if self._background:
                    await self.lull.wait()
                    live.repository.pull(live.name, live.wanted)
                    await complete.wait()
        finally:
            complete.set()  # also for who waits for a pull that was stopped
            if live.pulling is scope:  # else it was stopped, and may have been begun anew
                live.pulling = None
                live.repository.pull(live.name, None)
            self.leave(live.name)

    def _stop_pull(self, name: str) -> None:
        live = self.live.get(name)
        if live is not None and live.pulling is not None:
            live.pulling.cancel()
            live.pulling = None
            live.repository.pull(name, None)

    async def _serve_repository(self, repository: LiveRepository) -> None:
        try:
            await keep_running(f"what fetches from {repository.name}", self._live_repository, repository)
        finally:
            self._forget_repository(repository)
            with trio.CancelScope(shield=True):
                await repository.source.aclose()

    async def _live_repository(self, repository: LiveRepository) -> None:
        """Until it has been unused for a while. Run again after a failure, it serves the layers that lived before."""
        traffic = self._traffic.setdefault(repository.source.authority, Traffic())
        async with open_fetcher(self._store, repository.source, traffic) as fetcher:
            repository.fetcher = fetcher
            for live in self.live.values():
                if live.repository is repository and live.objects is not None:
                    self._catalog.add(live.name, fetcher, (live.objects,))
            repository.ready.set()
            async with trio.open_nursery() as nursery:
                rest = f"the background fetch from {repository.name}"
                nursery.start_soon(keep_running, rest, self._fetch_rest, repository)
                await repository.uses.wait_until_unused()
                self._forget_repository(repository)  # at once: what is being closed must not be found by whoever comes next
                nursery.cancel_scope.cancel()

    def _forget_repository(self, repository: LiveRepository) -> None:
        if self._repositories.get(repository.name) is repository:
            del self._repositories[repository.name]

    async def _serve_layer(self, live: LiveLayer) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, f"the index of layer {live.lazy.digest}", self._make_known, live)
                await live.uses.wait_until_unused()
                self._forget_layer(live)  # at once, as above: also where it was never indexed, because nobody has its TOC
                nursery.cancel_scope.cancel()
        finally:
            self._forget_layer(live)
            live.repository.uses.change(-1)

    def _forget_layer(self, live: LiveLayer) -> None:
        if self.live.get(live.name) is live:
            del self.live[live.name]
            self._catalog.remove(live.name)

    async def _make_known(self, live: LiveLayer) -> None:
        """To the gate, with who fetches it."""
        try:
            await live.repository.ready.wait()
            index = live.index or Index(await self._load(live))
            layer = index.layer
            live.objects = self._catalog.known(key_of(layer)) or await index.objects()
        except Exception as error:
            live.trouble = f"what is missing of it cannot be had: {error}"
            raise
        live.index, live.trouble = None, ""
        fetcher = live.repository.fetcher
        assert fetcher is not None
        if self.live.get(live.name) is live:
            live.wanted = Wanted(live.objects.layer, layer.prefetch_end)
            self._catalog.add(live.name, fetcher, (live.objects,))
            live.indexed.set()

    async def _load(self, live: LiveLayer) -> Layer:
        """From the store; where its TOC was lost there, from the registry, however long that takes."""
        lazy = live.lazy
        pause = _FIRST_PAUSE
        while True:
            try:
                known = await trio.to_thread.run_sync(recall, self._store, lazy)
                if known is None:
                    known = await load_layer(live.repository.source, self._store, descriptor_of(lazy), accepted=True)
            except LazyfsError as error:
                if str(error) != live.trouble:
                    _log.warning("what is missing of layer %s cannot be had: %s", lazy.digest, error)
                live.trouble = str(error)
                await trio.sleep(pause)
                pause = min(2 * pause, _SLOWEST)
            else:
                live.trouble = ""
                return known

    async def _fetch_rest(self, repository: LiveRepository) -> None:
        """The pulls of one repository, one after the other, in the order in which they came. One that is stopped is left at once, and
        none of the others is begun anew."""
        while True:
            changed = repository.pulls_changed
            name, wanted = next(iter(repository.pulls.items()), (None, None))
            if name is None or wanted is None:
                await changed.wait()
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_when_stopped, repository, name, wanted, nursery.cancel_scope)
                await self._finish(repository, name, wanted)
                nursery.cancel_scope.cancel()

    async def _finish(self, repository: LiveRepository, name: str, wanted: Wanted) -> None:
        finished = await self._bring(repository, [wanted])
        live = self.live.get(name)
        if live is not None:
            if finished:
                await trio.to_thread.run_sync(self._note_complete, live.lazy)
            live.complete.set()
        if repository.pulls.get(name) is wanted:
            del repository.pulls[name]
        if not repository.pulls:
            await trio.to_thread.run_sync(give_back)

    async def _bring(self, repository: LiveRepository, layers: Sequence[Wanted], *, rest: bool = True) -> bool:
        """What is missing of some layers, or without `rest` of their prefixes. Whether nothing is."""
        assert repository.fetcher is not None
        background = Background(self._store, repository.fetcher, layers, rest=rest)
        try:
            await background.run()
        except Exception as surprise:  # noqa: BLE001  the guard of what nobody asked for: it must not end the daemon for its readers
            _log.exception("the background fetch from %s has ended", repository.name)
            background.trouble = f"the background fetch has ended: {surprise!r}"
        repository.trouble = background.trouble
        return background.finished.is_set()

    def _note_complete(self, lazy: LazyLayer) -> None:
        try:
            self._store.keep_note(_completeness(lazy), "yes")
        except LazyfsError as error:
            _log.info("a restart will look once more whether layer %s is complete: %s", lazy.digest, error)


async def _when_stopped(repository: LiveRepository, name: str, wanted: Wanted, scope: trio.CancelScope) -> None:
    while repository.pulls.get(name) is wanted:
        await repository.pulls_changed.wait()
    scope.cancel()


def name_of(lazy: LazyLayer) -> str:
    """What a live layer goes by in the catalog: where it is, and which TOC is believed of it."""
    return f"{lazy.reference}@{lazy.digest} {lazy.toc_digest}"


def descriptor_of(lazy: LazyLayer) -> Descriptor:
    """The layer as a manifest would name it."""
    return Descriptor(lazy.media_type, lazy.digest, lazy.size, {TOC_DIGEST: lazy.toc_digest}, None, {})


def recall(store: Store, lazy: LazyLayer) -> Layer | None:
    """Blocking. The layer, if its TOC is in the store. It is a snapshot, so an earlier version may have accepted it."""
    data = store.document(lazy.toc_digest)
    if data is None:
        return None
    entries = parse_toc(data, lazy.toc_offset, f"layer {lazy.digest}", accepted=True)
    return Layer(descriptor_of(lazy), lazy.toc_digest, lazy.toc_offset, entries)


def _index(layer: Layer) -> LayerObjects:
    return LayerObjects(key_of(layer), LayerBlob.of(layer))


def _completeness(lazy: LazyLayer) -> str:
    return f"complete {lazy.toc_digest}"
