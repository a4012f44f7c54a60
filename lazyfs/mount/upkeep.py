"""Upkeep of the store while it is in use: syncs what has arrived, evicts what exceeds the limit, scrubs for bit rot."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

import trio

from lazyfs.errors import LazyfsError, StoreUnusable
from lazyfs.reports.results import PruneResult
from lazyfs.reports.status import StoreStatus
from lazyfs.store.eviction import Freed
from lazyfs.store.in_use import InUse
from lazyfs.store.scrub import Scrub
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_SYNC_INTERVAL: Final = 5.0
"""Seconds between syncs: a power cut loses at most what arrived in that time."""
_CHECK_INTERVAL: Final = 1.0
_MEASURE_INTERVAL: Final = 10.0
"""Seconds until usage is measured again although this process has stored nothing: another one may have."""
_MAX_RELEASE_INTERVAL: Final = 600.0
_HIGH, _LOW = 0.95, 0.90
"""Shares of the limit: eviction starts above the first and ends at the second, which leaves room for what arrives until the next check."""
_SCRUB_DELAY: Final = 600.0
_SCRUB_STEP: Final = 1 << 20
_SCRUB_RATE: Final = 8e6
"""Bytes a second."""
_SCRUB_INTERVAL: Final = 86_400.0
"""Seconds between two rounds of the scrub."""


def _not_announced(_: str) -> bool:
    """For a store without a gate: no object was announced to overlayfs."""
    return False


async def _no_overlays(_: Sequence[str]) -> None:
    """For a process without overlays: there is nothing to refresh."""


class Upkeep:
    """Four periodic tasks over one store. Not thread-safe.

    `in_use` returns what this process has mounted. `announced` says whether an object was announced to overlayfs within the last minute;
    it is called in threads. `on_evicted` is called with the objects that were removed. `exclusive`: no other process may evict while this
    one runs, because only this one knows what it has announced.
    """

    def __init__(
        self,
        store: Store,
        in_use: Callable[[], InUse],
        *,
        announced: Callable[[str], bool] = _not_announced,
        on_evicted: Callable[[Sequence[str]], Awaitable[None]] = _no_overlays,
        exclusive: bool = False,
    ) -> None:
        self._store = store
        self._in_use = in_use
        self._announced = announced
        self._on_evicted = on_evicted
        self._exclusive = exclusive
        self._may_evict = False
        self._is_durable = True
        self._removing = trio.Lock()
        self.scrub = Scrub(store, announced)
        self.evicted_objects = 0
        self.evicted_bytes = 0

    async def run(self, tasks: Supervisor) -> None:
        """Run all four until cancelled. Cancelled: a step that runs in a thread is completed."""
        with ExitStack() as stack:
            stack.callback(self._give_up_eviction)
            async with trio.open_nursery() as nursery:
                tasks = tasks.within(nursery)
                tasks.keep_running("store sync", self._sync_periodically)
                tasks.keep_running("store scrub", self._scrub_continuously)
                tasks.keep_running("release of removed files", self._release_periodically)
                tasks.keep_running("store limit", self._enforce_limit, stack)

    def _give_up_eviction(self) -> None:
        self._may_evict = False

    async def stop(self) -> None:
        """Sync everything that has arrived, before the process exits."""
        await self._make_durable()

    async def prune(self, *, everything: bool, older_than: float) -> PruneResult:
        """Remove what no mounted image needs (`everything`: also what mounted images need), if it arrived more than `older_than` seconds ago.

        Raises StoreFull, StoreUnusable.
        """
        freed = await self._remove(None, mounted_too=everything, older_than=older_than)
        if freed is None:
            raise StoreUnusable("another process is evicting files from the store", hint="Try again")
        await self._release()
        usage = await trio.to_thread.run_sync(self._store.eviction.usage)
        return PruneResult(
            objects=freed.objects,
            documents=freed.documents,
            parts=freed.parts,
            bytes=freed.bytes,
            held_bytes=min(freed.held, usage.held),
            used_bytes=usage.used,
        )

    async def describe(self) -> StoreStatus:
        """The state of the store, and what this process has evicted and scrubbed."""
        usage = await trio.to_thread.run_sync(self._store.eviction.usage)
        return StoreStatus(
            used_bytes=usage.used,
            held_bytes=usage.held,
            limit_bytes=usage.limit,
            durable=not await trio.to_thread.run_sync(self._store.durability.is_pending),
            evicted_objects=self.evicted_objects,
            evicted_bytes=self.evicted_bytes,
            scrubbed_bytes=self.scrub.bytes,
            scrub_damaged=self.scrub.damaged,
        )

    async def _sync_periodically(self) -> None:
        while True:
            await trio.sleep(_SYNC_INTERVAL)
            await self._make_durable()

    async def _make_durable(self) -> None:
        try:
            await trio.to_thread.run_sync(self._store.durability.make_durable)
        except LazyfsError as error:
            # Logged once, not at each retry: a full disk stays full.
            if self._is_durable:
                _log.warning("cannot sync what has arrived: %s", error)
            self._is_durable = False
        else:
            self._is_durable = True

    async def _enforce_limit(self, stack: ExitStack) -> None:
        kept, measured = -1, -_MEASURE_INTERVAL
        while True:
            if self._exclusive and not self._may_evict:
                self._may_evict = stack.enter_context(self._store.directory.claims.evicting())
            now = trio.current_time()
            if self._store.kept_bytes != kept or now - measured >= _MEASURE_INTERVAL:
                kept, measured = self._store.kept_bytes, now
                try:
                    await self._evict_above_limit()
                except LazyfsError as error:
                    _log.warning("cannot evict from the store: %s", error)
            await trio.sleep(_CHECK_INTERVAL)

    async def _evict_above_limit(self) -> None:
        if not await trio.to_thread.run_sync(lambda: self._store.eviction.limit):
            return
        usage = await trio.to_thread.run_sync(self._store.eviction.usage)
        if usage.used <= usage.limit * _HIGH:
            return
        freed = await self._remove(usage.used - int(usage.limit * _LOW), mounted_too=True)
        if freed is not None and freed.bytes:
            self.evicted_objects += freed.objects
            self.evicted_bytes += freed.bytes
            _log.info("removed %d objects (%.1f MB) to free space", freed.objects, freed.bytes / 1e6)

    async def _remove(self, wanted: int | None, *, mounted_too: bool, older_than: float = 0.0) -> Freed | None:
        """None if another process has the right to evict."""
        async with self._removing:
            with ExitStack() as stack:
                if not self._may_evict and not stack.enter_context(self._store.directory.claims.evicting()):
                    return None
                remove = partial(self._store.eviction.remove, mounted_too=mounted_too, older_than=older_than)
                freed = await trio.to_thread.run_sync(remove, wanted, self._in_use(), self._announced)
        if freed.names:
            await self._on_evicted(freed.names)
        return freed

    async def _release_periodically(self) -> None:
        """Refresh overlays until the kernel has released removed objects: a file that was open at the last refresh still takes its space."""
        pause, known = _MEASURE_INTERVAL, frozenset[str]()
        while True:
            await trio.sleep(pause)
            held = frozenset(await self._release())
            # A file that stays open for long must not cause a refresh every few seconds.
            pause = min(2 * pause, _MAX_RELEASE_INTERVAL) if held and held >= known else _MEASURE_INTERVAL
            known = held

    async def _release(self) -> tuple[str, ...]:
        """Refresh the overlays for removed objects that the kernel still holds; returns their names."""
        held = await trio.to_thread.run_sync(self._store.eviction.held_names)
        if held:
            await self._on_evicted(held)
        return held

    async def _scrub_continuously(self) -> None:
        await trio.sleep(_SCRUB_DELAY)
        while True:
            try:
                step = await trio.to_thread.run_sync(self.scrub.step, _SCRUB_STEP)
            except LazyfsError as error:
                _log.warning("cannot scrub the store: %s", error)
                await trio.sleep(_SCRUB_INTERVAL)
                continue
            if step.dropped:
                await self._on_evicted(step.dropped)
            await trio.sleep(_SCRUB_INTERVAL if step.is_last else step.bytes / _SCRUB_RATE)
