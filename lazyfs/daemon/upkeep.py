"""What keeps the store in order while it is used: what has arrived is made durable."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import trio

from lazyfs.daemon.orders import Report
from lazyfs.errors import LazyfsError, StoreUnusable
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

_PAUSE: Final = 5.0


class Upkeep:
    """One task. `names` are the objects of all mounted images; `evicted` is told what was taken from under them."""

    def __init__(
        self, store: Store, names: Callable[[], Iterable[str]], evicted: Callable[[Sequence[str]], Awaitable[None]]
    ) -> None:
        self._store = store
        self._names = names
        self._evicted = evicted

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(_PAUSE)
            await self._make_durable()

    async def stop(self) -> None:
        """Before the process ends."""
        await self._make_durable()

    async def prune(self, *, everything: bool, older_than: float) -> Report:
        """Make room. Raises LazyfsError."""
        raise StoreUnusable("a store in use cannot be pruned yet", hint="Unmount what is mounted from it first")

    async def _make_durable(self) -> None:
        try:
            await trio.to_thread.run_sync(self._store.durability.make_durable)
        except LazyfsError as error:
            _log.warning("what has arrived would not survive a power cut: %s", error)
