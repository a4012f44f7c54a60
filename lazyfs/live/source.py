"""Live sources: the connections to a repository or layout that is in use, and the fetcher that works with them.

containerd's layers find a source by the name of its repository, and share it. A mounted image has a source of its own, with the
credentials of the order. Sources of one authority share a line: the background of each gives way to the readers of all.

A source lives while it has users, and a shared one some time longer. Its states are in lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakValueDictionary

import trio

from lazyfs.errors import Unreachable
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.fetch.flight import StoreFlights
from lazyfs.fetch.traffic import Traffic
from lazyfs.gate.catalog import Catalog, LayerObjects
from lazyfs.live.lifecycle import SOURCE, Lifecycle, State
from lazyfs.live.uses import LINGER, Uses
from lazyfs.source.protocol import ImageSource
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

OpenSource = Callable[[str], ImageSource]
"""Opens the source of that name. Raises UsageError, LocalError."""


class LiveSource:
    """One source. Made by `Sources`."""

    def __init__(self, name: str, source: ImageSource, catalog: Catalog, *, shared: bool) -> None:
        self.name: Final = name
        self.source: Final = source
        self.is_shared: Final = shared
        self.linger: Final = LINGER if shared else 0.0
        """Seconds for which the source and its layers stay without a user. An image, which owns a source, lingers itself."""
        self.uses = Uses()
        self.lifecycle = Lifecycle(SOURCE)
        self.fetcher: Fetcher | None = None
        """The last fetcher. It is closed unless the state is READY."""
        self.trouble = ""
        """Why its background fetch is stalled; empty while all is well."""
        self._catalog = catalog
        self._offers: dict[str, LayerObjects] = {}

    @contextmanager
    def in_use(self) -> Iterator[LiveSource]:
        """Count one use for as long as the block lasts."""
        with self.uses.in_use():
            yield self

    async def ready(self) -> Fetcher:
        """Wait for the fetcher. Raises Unreachable if the source has ended."""
        await self.lifecycle.wait_for(State.READY, State.ENDED)
        if not self.lifecycle.is_in(State.READY) or self.fetcher is None:
            raise Unreachable(f"{self.name} is not in use any more")
        return self.fetcher

    def offer(self, name: str, objects: LayerObjects) -> None:
        """Let the gate find a layer at this source, now and with every later fetcher."""
        self._offers[name] = objects
        if self.lifecycle.is_in(State.READY) and self.fetcher is not None:
            self._catalog.add(name, self.fetcher, (objects,))

    def withdraw(self, name: str) -> None:
        """Stop offering the layer. The caller removes it from the catalog, because another source may offer it by now."""
        self._offers.pop(name, None)

    def set_fetcher(self, fetcher: Fetcher) -> None:
        """Called by `Sources`."""
        self.fetcher = fetcher
        self.lifecycle.move(State.READY)
        for name, objects in self._offers.items():
            self._catalog.add(name, fetcher, (objects,))


class Sources:
    """All live sources of one store. For the event loop."""

    def __init__(self, store: Store, catalog: Catalog, tasks: Supervisor) -> None:
        self._store = store
        self._catalog = catalog
        self._tasks = tasks
        self._shared: dict[str, LiveSource] = {}
        self._store_flights = StoreFlights()
        self._traffic: WeakValueDictionary[str, Traffic] = WeakValueDictionary()

    def shared(self, name: str, open_source: OpenSource) -> LiveSource:
        """The shared source of that name, opened if necessary. It lives as long as its `uses` say, and some time longer.

        Raises what `open_source` raises.
        """
        live = self._shared.get(name)
        if live is None:
            live = self._shared[name] = LiveSource(name, open_source(name), self._catalog, shared=True)
            self._start(live)
        return live

    def own(self, name: str, source: ImageSource) -> LiveSource:
        """A source for one image, with one use. It closes `source` when it ends."""
        live = LiveSource(name, source, self._catalog, shared=False)
        live.uses.change(+1)
        self._start(live)
        return live

    def all_shared(self) -> list[LiveSource]:
        """The shared sources that are live."""
        return list(self._shared.values())

    def _start(self, live: LiveSource) -> None:
        self._tasks.start_soon("source", self._run, live, subject=live.name)

    async def _run(self, live: LiveSource) -> None:
        try:
            async with trio.open_nursery() as nursery:
                fetching = self._tasks.within(nursery)
                fetching.keep_running("fetcher", self._fetch, live, subject=live.name)
        finally:
            self._end(live)
            with trio.CancelScope(shield=True):
                try:
                    await live.source.aclose()
                finally:
                    live.lifecycle.move(State.CLOSED)

    async def _fetch(self, live: LiveSource) -> None:
        """Run until the source has been unused for a while. After a failure it is run again, and serves the same layers."""
        traffic = self._traffic.setdefault(live.source.authority, Traffic())
        try:
            async with open_fetcher(
                self._store,
                live.source,
                traffic,
                store_flights=self._store_flights,
                failures=self._tasks.failures,
                image=live.name,
            ) as fetcher:
                live.set_fetcher(fetcher)
                await live.uses.wait_until_unused(lambda: live.linger)
                self._end(live)  # while its fetcher works: a closing source must not be found
        finally:
            if live.lifecycle.is_in(State.READY):
                live.lifecycle.move(State.OPENING)

    def _end(self, live: LiveSource) -> None:
        """Does nothing if it has ended already: its name may belong to another source by now."""
        if self._shared.get(live.name) is live:
            del self._shared[live.name]
        if not live.lifecycle.is_in(State.ENDED):
            live.lifecycle.move(State.ENDED)
