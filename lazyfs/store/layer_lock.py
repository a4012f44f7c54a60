"""Layer locks: one task of one process fetches an eager layer; the others wait, and then find it in the store.

The locks are claims (claims.py) on the digest of the layer instead of a chunk. Each caller opens the claims file itself, so
that two tasks of one process exclude each other as two processes do, and the kernel releases the locks with the process.

The holder sends heartbeats (store/partial_blobs.py), and waiters watch them: a stopped process blocks others no longer than a
silent registry would. After that, a waiter fetches the layer without the lock. That downloads it twice, and keeps no partial
blob, only files.
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
"""Seconds between two heartbeats."""
_STALL_TIMEOUT: Final = 20.0
"""Seconds without a heartbeat after which waiters give up on the holder."""


class LayerLocks:
    """The locks that a caller holds, and those that it wants while their holders are stalled."""

    def __init__(self, store: Store, claims: Claims, digests: Iterable[Digest]) -> None:
        self._store = store
        self._claims = claims
        self._held: set[Digest] = set()
        now = trio.current_time()
        self._last_seen = {digest: (store.partial_blobs.last_touched(digest), now) for digest in digests}
        """The last heartbeat of each layer, and when it was first seen. A stopped process that holds several layers delays a
        waiter once, not once for each."""

    def holds(self, digest: Digest) -> bool:
        """Whether the lock is held. Only then may the layer's partial blob be written."""
        return digest in self._held

    def release(self, digest: Digest) -> None:
        """The layer is in the store, or was given up: let others have it."""
        if digest in self._held:
            self._store.partial_blobs.remove_if_empty(digest)
            self._held.discard(digest)
            self._claims.release(to_raw(digest))

    async def acquire(self, digest: Digest, waiting: Callable[[Digest], Awaitable[None]] | None) -> None:
        """Wait for the layer's lock as long as its holder lives. Cancelled: it is not held."""
        if not self._claims.claim(to_raw(digest)):
            if waiting is not None:
                await waiting(digest)
            if not await self._wait_for_lock(digest):
                _log.warning(
                    "another process that fetches layer %s has made no progress for %.0f s: fetching it in this process too",
                    digest,
                    _STALL_TIMEOUT,
                )
                return
        self._held.add(digest)
        self._store.partial_blobs.begin(digest)

    async def _wait_for_lock(self, digest: Digest) -> bool:
        seen, since = self._last_seen[digest]
        # A holder that has just got the lock sends its first heartbeat at once.
        since = max(since, trio.current_time() - _STALL_TIMEOUT + 4 * _POLL)
        while not self._claims.claim(to_raw(digest)):
            now = self._store.partial_blobs.last_touched(digest)
            if now != seen:
                seen, since = now, trio.current_time()
            elif trio.current_time() - since >= _STALL_TIMEOUT:
                return False
            await trio.sleep(_POLL)  # another process cannot set our events
        return True

    async def send_heartbeats(self) -> None:
        """Runs until cancelled."""
        while True:
            await trio.to_thread.run_sync(self._store.partial_blobs.touch, tuple(self._held))
            await trio.sleep(_HEARTBEAT)

    def end(self) -> None:
        """Release all locks."""
        for digest in tuple(self._held):
            self.release(digest)


@asynccontextmanager
async def lock_layers(
    store: Store, digests: Iterable[Digest], waiting: Callable[[Digest], Awaitable[None]] | None = None
) -> AsyncIterator[LayerLocks]:
    """Hold the locks of the layers `digests`. A caller that holds some must not ask for others.

    Waits while others fetch them; `waiting` is called with the digest of each that is locked. Cancelled: none is held.
    """
    failure: Exception | None = None
    wanted = sorted(set(digests))
    with closing(Claims(store.directory.path / "claims")) as claims:
        locks = LayerLocks(store, claims, wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(locks.send_heartbeats)
            try:
                # Always in the same order, so that callers cannot deadlock.
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
