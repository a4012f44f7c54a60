"""Pulls of whole layers: fetches the rest of them, though no reader has asked for it.

The prefetch range of each layer is fetched at once, because the container that comes next will wait for it. The rest waits for
a quiet period (quiet_period.py), and is fetched layer by layer: one queue per source, in the order of the pulls. A pull that is
stalled, because its blob cannot be fetched, goes to the end of the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Sized
from typing import Final

import trio

from lazyfs.errors import LazyfsError, Unreachable
from lazyfs.fetch.background import Background, Wanted
from lazyfs.format.dialects import toc_key
from lazyfs.image.layer import Layer
from lazyfs.kernel.heap import trim_heap
from lazyfs.live.layer import LayerIndexer, LiveLayer, Pull
from lazyfs.live.lifecycle import State
from lazyfs.live.quiet_period import QuietPeriod
from lazyfs.live.source import LiveSource
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_STALL_CHECK: Final = 10.0
"""Seconds between checks whether a pull is stalled while others wait."""
_PREFIX_TIMEOUT: Final = 30.0
"""Seconds for a prefetch range that has no user yet."""


class Pulls:
    """All pulls in progress. For the event loop."""

    def __init__(self, store: Store, tasks: Supervisor, *, rest: bool = True) -> None:
        """Without `rest`, a pull ends after the prefetch range."""
        self._store = store
        self._tasks = tasks
        self._rest = rest
        self._queues: dict[LiveSource, dict[LiveLayer, Pull]] = {}
        """Pulls that wait, and first in each queue the active one."""
        self.quiet_period = QuietPeriod()

    def begin(self, live: LiveLayer) -> Pull:
        """Pull a layer, and keep it live until the pull ends. Returns the pull in progress if there is one."""
        if live.pull is None:
            live.pull = Pull()
            live.uses.change(+1)
            self._tasks.start_soon("pull", self._run, live, live.pull, subject=str(live.layer.digest))
        return live.pull

    def stop(self, live: LiveLayer) -> None:
        """Nobody wants all of the layer any more: stop its pull, and let the next one run."""
        if live.pull is not None:
            live.pull.scope.cancel()
            live.pull = None

    async def fetch_prefix(self, index: LayerIndexer, source: LiveSource) -> None:
        """Fetch a layer's prefetch range before anything uses the layer, while the link is idle. Ends after a while in any
        case."""
        kept = await index.indexed()
        if kept.prefetch_end:
            with source.in_use(), trio.move_on_after(_PREFIX_TIMEOUT):
                await self._fetch(source, [kept.wanted], rest=False)

    async def was_complete(self, layer: Layer) -> bool:
        """Whether a pull of this layer was ever completed, by this or an earlier process. Chunks may have been evicted since."""
        return await trio.to_thread.run_sync(self._store.note, _completeness(layer)) is not None

    async def _run(self, live: LiveLayer, pull: Pull) -> None:
        try:
            with pull.scope:
                wanted = (await live.known()).wanted
                await self._fetch(live.source, [wanted], rest=False)
                if self._rest:
                    pull.lifecycle.move(State.WAITING)
                    await self.quiet_period.wait()
                    self._enqueue(live, pull)
                    await pull.lifecycle.wait_for(State.ENDED)
        finally:
            if live.pull is pull:  # else it was stopped, and another one may have begun
                live.pull = None
            if not pull.lifecycle.is_in(State.ENDED):
                pull.lifecycle.move(State.ENDED)  # after a stop or a failure: wakes the waiters and the queue
            live.uses.change(-1)

    def _enqueue(self, live: LiveLayer, pull: Pull) -> None:
        queue = self._queues.get(live.source)
        if queue is not None:
            # An earlier, stopped pull of the same layer leaves the queue by itself.
            queue.pop(live, None)
            queue[live] = pull
        else:
            self._queues[live.source] = {live: pull}
            self._tasks.keep_running("pulls of a source", self._run_queue, live.source, subject=live.source.name)

    async def _run_queue(self, source: LiveSource) -> None:
        """Run until the queue is empty. A failure ends the pull that is active; when run again, this continues with the others."""
        queue = self._queues[source]
        while queue:
            live, pull = next(iter(queue.items()))
            is_over = True
            try:
                is_over = await self._run_pull(live, pull, queue)
            finally:
                if queue.get(live) is pull:
                    del queue[live]
                    if not is_over:
                        queue[live] = pull
                if is_over and not pull.lifecycle.is_in(State.ENDED):
                    pull.lifecycle.move(State.ENDED)
            if not queue:
                await trio.to_thread.run_sync(trim_heap)  # a pull may be added meanwhile
        del self._queues[source]

    async def _run_pull(self, live: LiveLayer, pull: Pull, queue: Sized) -> bool:
        """Fetch the rest of one layer until its pull is stopped. Returns False if it is stalled and others are in `queue`."""
        if pull.lifecycle.is_in(State.ENDED):
            return True
        is_over = True
        async with trio.open_nursery() as nursery:

            async def leave_when_stuck(background: Background) -> None:
                nonlocal is_over
                while True:
                    await trio.sleep(_STALL_CHECK)
                    if background.is_stalled and len(queue) > 1:
                        is_over = False
                        nursery.cancel_scope.cancel()

            async def leave_when_stopped() -> None:
                await pull.lifecycle.wait_for(State.ENDED)
                nursery.cancel_scope.cancel()

            nursery.start_soon(leave_when_stopped)
            wanted = (await live.known()).wanted
            if await self._fetch(
                live.source, [wanted], begun=lambda background: nursery.start_soon(leave_when_stuck, background)
            ):
                await trio.to_thread.run_sync(self._note_complete, live.layer)
            is_over = True
            nursery.cancel_scope.cancel()
        return is_over

    async def _fetch(
        self,
        source: LiveSource,
        layers: Sequence[Wanted],
        *,
        rest: bool = True,
        begun: Callable[[Background], object] = lambda _: None,
    ) -> bool:
        """Fetch what is missing of some layers, or without `rest` of their prefetch ranges. Returns whether nothing is missing.
        `begun` is called with the background fetch."""
        try:
            fetcher = await source.ready()
        except Unreachable as error:
            source.trouble = str(error)
            return False
        background = Background(self._store, fetcher, layers, rest=rest, subject=source.name, failures=self._tasks.failures)
        begun(background)
        try:
            await background.run()
        finally:
            source.trouble = background.trouble
        return background.finished.is_set()

    def _note_complete(self, layer: Layer) -> None:
        try:
            self._store.keep_note(_completeness(layer), "yes")
        except LazyfsError as error:
            _log.info("cannot note that layer %s is complete: %s", layer.digest, error)


def _completeness(layer: Layer) -> str:
    return f"complete sha256:{toc_key(layer.toc_digest, layer.dialect.name)}"
