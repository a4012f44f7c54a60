"""One at a time: a layer is fetched whole by one task of one process, and the others find it here when it is their turn.

The locks are the store's claims, on the layer's digest instead of a chunk's, through an open file of their own: so that
two tasks of one process exclude each other as two processes do, and the kernel lets go of them with whoever held them.

A holder shows signs of life (store/partial_blobs.py), and those who wait look for them: a process that is stopped holds nobody for longer
than a silent registry would. Then the layer is fetched without its lock, which costs its bytes twice, and nothing of it is kept but its files.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing
from typing import Final

import trio

from lazyfs.format.digest import Digest, to_raw
from lazyfs.store.claims import Claims
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

_POLL: Final = 0.05
_HEARTBEAT: Final = 4.0
"""Seconds between two signs of life."""
_PATIENCE: Final = 20.0
"""Seconds without one until nobody waits any longer."""


class LayerLocks:
    """The layers that are held, and those that should be and are held by somebody who does not move."""

    def __init__(self, store: Store, claims: Claims, digests: Iterable[Digest]) -> None:
        self._store = store
        self._claims = claims
        self._held: set[Digest] = set()
        now = trio.current_time()
        self._last_seen = {digest: (store.partial_blobs.last_touched(digest), now) for digest in digests}
        """The last sign of life of each layer, and since when it is the last: a stopped process that holds several layers holds who wants
        them once, not once for each."""

    def holds(self, digest: Digest) -> bool:
        """Whether the layer is held: only then may its blob be kept under way."""
        return digest in self._held

    def release(self, digest: Digest) -> None:
        """The layer is here, or given up: others may have their turn."""
        if digest in self._held:
            self._store.partial_blobs.remove_if_empty(digest)
            self._held.discard(digest)
            self._claims.release(to_raw(digest))

    async def acquire(self, digest: Digest, waiting: Callable[[Digest], Awaitable[None]] | None) -> None:
        """Wait for the layer's lock, for as long as whoever has it lives. Cancelled: it is not held."""
        if not self._claims.claim(to_raw(digest)):
            if waiting is not None:
                await waiting(digest)
            if not await self._wait_for_lock(digest):
                _log.warning(
                    "another process that fetches layer %s has made no progress for %.0f s: fetching it here as well",
                    digest,
                    _PATIENCE,
                )
                return
        self._held.add(digest)
        self._store.partial_blobs.begin(digest)

    async def _wait_for_lock(self, digest: Digest) -> bool:
        seen, since = self._last_seen[digest]
        # Whoever has got the lock just now shows a first sign at once.
        since = max(since, trio.current_time() - _PATIENCE + 4 * _POLL)
        while not self._claims.claim(to_raw(digest)):
            now = self._store.partial_blobs.last_touched(digest)
            if now != seen:
                seen, since = now, trio.current_time()
            elif trio.current_time() - since >= _PATIENCE:
                return False
            await trio.sleep(_POLL)  # another process sets no event of ours
        return True

    async def send_heartbeats(self) -> None:
        """Until cancelled."""
        while True:
            await trio.to_thread.run_sync(self._store.partial_blobs.touch, tuple(self._held))
            await trio.sleep(_HEARTBEAT)

    def end(self) -> None:
        """Let go of all."""
        for digest in tuple(self._held):
            self.release(digest)


@asynccontextmanager
async def lock_layers(
    store: Store, digests: Iterable[Digest], waiting: Callable[[Digest], Awaitable[None]] | None = None
) -> AsyncIterator[LayerLocks]:
    """Hold the layers `digests`; whoever holds one asks for no others.

    Waits for as long as others fetch them; `waiting` is told for which. Cancelled: none is held.
    """
    failure: Exception | None = None
    wanted = sorted(set(digests))
    with closing(Claims(store.directory.path / "claims")) as claims:
        locks = LayerLocks(store, claims, wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(locks.send_heartbeats)
            try:
                # Always in the same order: nobody waits for a layer while somebody else waits for one that he holds.
                for digest in wanted:
                    await locks.acquire(digest, waiting)
                yield locks
            except Exception as error:  # noqa: BLE001  not swallowed: a nursery would wrap it in a group
                failure = error
            finally:
                locks.end()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
