"""The fetcher: every byte of a file, from the store if it is there, from the source if not.

The order of a miss:

1. A flight for the chunk is in the air: wait for it. One of another source is waited for only so long (other_sources.py).
2. Else choose_run a run: the chunk, and the missing neighbours behind it that the window allows (window.py). All get a flight at
   once, so that no second run can hold them.
3. In a thread, claim the run and look again: what arrived meanwhile, what lies in another file of the store (copied, not
   fetched), what another process is fetching right now (its claim in the store says so) falls out of the run. Short runs
   that begin at the same time do this together, and what they bring is unpacked together (batcher.py).
4. One range request; each chunk lands its flight as soon as it is verified and kept.

A layer that has no ranges, because it is not lazy or the source ignores them, comes as a whole: one run at a time, which others join,
and all that is missing of it is kept.

A reader waits for a deadline, a run for progress: see run.py. So a chunk that needs longer than a reader waits is there for a later
read, and each of its bytes has come once.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import trio

from lazyfs.errors import LazyfsError, SourceError, Unreachable
from lazyfs.fetch.flight import Flight, RunFlights, StoreFlights
from lazyfs.fetch.other_sources import OtherSources, wait_for_other
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.fetch.progress import FLOOR_TIME
from lazyfs.fetch.run import Run
from lazyfs.fetch.shared import Shared
from lazyfs.fetch.slots import Slots
from lazyfs.fetch.statistics import FetchStatistics
from lazyfs.fetch.traffic import Traffic
from lazyfs.fetch.window import Windows, choose_run
from lazyfs.format.digest import Digest
from lazyfs.source.protocol import ImageSource
from lazyfs.store.store import Store
from lazyfs.tasks import Failures, Supervisor

READ_DEADLINE: Final = 60.0
"""Seconds until a read that waits for the network gives up."""
CLAIM_TIMEOUT: Final = 20.0
"""Seconds for which a reader leaves a chunk to the process that has claimed it. That one may hang, or have been stopped."""
_SLOW_LINE: Final = 1_000_000
"""Bytes a second that the network must bring of a layer that comes whole, on top of that: it may have gigabytes."""
_CROWD: Final = 8
"""Runs on their way, or waiting for their turn, from which on a lone miss brings no neighbours."""
_LARGE: Final = 512 << 10
"""Compressed bytes of a member from which on a run is a large one: it lies in memory as a whole until it is unpacked."""
_PAUSE_LIMIT: Final = 5.0
"""Seconds for which the background gives way in the middle of a run. Then it gives the run up: a reader of another process
may be waiting for what it has claimed, and no server waits for ever."""


class _RunState(NamedTuple):
    """Who brings a chunk at a moment, and how far that had come then."""

    run: RunFlights | None
    received: int


class Fetcher:
    """Reads chunks of one image's layers. Made by `open_fetcher`."""

    def __init__(
        self, store: Store, source: ImageSource, tasks: Supervisor, traffic: Traffic, store_flights: StoreFlights | None = None
    ) -> None:
        self._store = store
        self._source = source
        self._tasks = tasks
        self._traffic = traffic
        self._shared = Shared(store, source, store_flights)
        self._flights = self._shared.flights
        self._other_sources = OtherSources()
        self._windows: dict[str, Windows] = {}
        self._wholes: dict[Digest, Run] = {}
        """The run that brings all of a layer."""
        self._runs = 0
        """Of readers, on their way or waiting for their turn."""
        self._closed = False

    def statistics(self) -> FetchStatistics:
        """What happened so far."""
        c = self._shared.counts
        unkept = self._shared.unkept.count
        return FetchStatistics(
            c["requests"], c["received"], c["chunks"], c["unpacked"], unkept, c["wrong"], dict(self._shared.errors)
        )

    def sends_ranges(self, layer: LayerBlob) -> bool:
        """False for a layer that is not lazy, and once the source has answered a range of it with the whole blob."""
        return layer.whole is None and layer.digest not in self._shared.rangeless

    def signs_of_life(self, pieces: Sequence[Piece]) -> int:
        """Another number whenever one of the runs that bring these pieces has received a byte, or, while it waits for its turn,
        one of the runs before it. 0 where none is on its way."""
        flights = [self._flight(piece.chunk.digest) for piece in pieces]
        return sum(run.progress.signs_of_life for run in {flight.run for flight in flights if flight is not None})

    async def read(self, layer: LayerBlob, piece: Piece, start: int, length: int) -> bytes | memoryview:
        """Bytes `[start, start + length)` of a chunk.

        Raises SourceError when they cannot be had before the deadline, InvalidInput when they are not what the TOC
        promised. The next read tries from scratch. Cancelled: what is under way arrives all the same.
        """
        digest = piece.chunk.digest
        timeout = _read_timeout(layer)
        end = trio.current_time() + timeout
        since = math.inf
        for deadline in (end - FLOOR_TIME, end):
            before = self._run_state(digest)
            with trio.move_on_at(deadline):
                while True:
                    unkept = self._shared.unkept.get(digest)
                    if unkept is not None:
                        return unkept[start : start + length]
                    if self._flight(digest) is None:
                        look = partial(self._store.read, piece.content, piece.number, start, length)
                        here = await trio.to_thread.run_sync(look, limiter=self._shared.readers)
                        if here is not None:
                            return here
                    with self._traffic.reader():
                        data = await self._wait_for(layer, piece, since, end)
                    if data is not None:
                        return data[start : start + length]
                    since = min(since, trio.current_time())
        self._give_up_stalled(digest, before)
        self._shared.errors[Unreachable.__name__] += 1
        raise Unreachable(
            f"{self._source.name} did not deliver layer {layer.digest} at offset {piece.chunk.member} in {timeout:.0f} s"
        )

    async def fetch_object(self, layer: LayerBlob, piece: Piece) -> bool:
        """Make the object of a single chunk, for a reader who will open it by its name. False where the store does not take it.

        Not looked for first: whoever asks has not found it. Raises as `read`, and has no deadline of its own. Cancelled: what is
        under way arrives all the same.
        """
        digest = piece.chunk.digest
        place = self._store.directory.objects + piece.content.name
        suspicious = False
        since = math.inf
        while digest not in self._shared.unkept:
            with self._traffic.reader():
                data = await self._wait_for(layer, piece, since, trio.current_time() + READ_DEADLINE)
            # What came may have come as a chunk of another file, and been kept as that; or there was no room for it.
            if data is not None and os.path.exists(place):
                return True
            # Most flights that land empty-handed were cut off from a run: a look saves the thread. But what is never there may be
            # an object that the index has and the disk has not.
            if (suspicious or os.path.exists(place)) and await trio.to_thread.run_sync(
                self._store.publish, piece.content, limiter=self._shared.readers
            ):
                return True
            suspicious = True
            since = min(since, trio.current_time())
        return False

    def close(self) -> None:
        """The image is gone: readers that wait for one of its own flights get an error, and so do later ones."""
        self._closed = True
        self._flights.complete_all(self._closed_error())

    def _closed_error(self) -> Unreachable:
        return Unreachable(f"{self._source.name} is no longer mounted")

    async def _wait_for(self, layer: LayerBlob, piece: Piece, since: float, deadline: float) -> memoryview | None:
        """`since`: when the reader first found that nobody had brought the piece to it; another process may have claimed it."""
        flight = self._flights.get(piece.chunk.digest)
        if flight is not None:
            try:
                return await flight.wait()
            except SourceError:
                pass  # another reader's run failed, perhaps far from this chunk: ours has a try of its own
        elif (other := self._flights.others(piece.chunk.digest)) is not None:
            has_landed, data = await wait_for_other(other)
            if has_landed:
                return data
        if self._closed:
            raise self._closed_error()
        flight = self._flights.get(piece.chunk.digest)
        if flight is None:
            flight = self._begin(layer, piece, deadline, ignore_claim=trio.current_time() - since >= CLAIM_TIMEOUT)
        return await flight.wait()

    def _begin(self, layer: LayerBlob, piece: Piece, deadline: float, *, ignore_claim: bool) -> Flight:
        """A run that brings `piece`; where all of the layer is on its way, that one."""
        shared = self._shared
        if self.sends_ranges(layer):
            windows = self._windows.setdefault(layer.digest, Windows())
            pieces = choose_run(layer, piece, windows, self._flights, crowded=self._runs >= _CROWD)
            large = max(each.chunk.member_end - each.chunk.member for each in pieces) > _LARGE
            run = Run(shared, layer, pieces, wanted=piece, deadline=deadline, ignore_claim=ignore_claim)
            slots = shared.large_slots if large else shared.slots
        else:
            whole = self._wholes.get(layer.digest)
            flight = whole.join(piece) if whole is not None else None
            if flight is not None:
                return flight
            run = Run(shared, layer, [piece], wanted=piece, deadline=deadline, ignore_claim=ignore_claim, rest=True)
            self._wholes[layer.digest] = run
            slots = shared.layer_slots
        self._runs += 1
        try:
            self._tasks.start_soon("fetch", self._run, layer, run, slots, subject=layer.digest)
        except BaseException as error:
            run.flights.complete_all(error if isinstance(error, Exception) else None)  # nobody else lands them
            self._end_run(layer, run)
            raise
        return run.flights.start(piece.chunk.digest)

    async def _run(self, layer: LayerBlob, run: Run, slots: Slots) -> None:
        try:
            failure = await run.fetch(slots=slots)
            if failure is not None and not isinstance(failure, LazyfsError):
                raise failure  # its readers have it already; a defect is logged and counted once, here
        finally:
            self._end_run(layer, run)

    def _end_run(self, layer: LayerBlob, run: Run) -> None:
        self._runs -= 1
        self._forget(layer, run)

    def _forget(self, layer: LayerBlob, run: Run) -> None:
        if self._wholes.get(layer.digest) is run:
            del self._wholes[layer.digest]

    async def fetch(self, layer: LayerBlob, pieces: Sequence[Piece]) -> Exception | None:
        """Bring `pieces` for the background, giving way to readers. Returns what went wrong, if something did.

        Cancelled: stops; what had arrived is kept.
        """
        await self._traffic.give_way(lambda: False)
        whole = None if self.sends_ranges(layer) else self._wholes.get(layer.digest)
        if whole is not None and not whole.has_ended:
            await whole.wait_for_end()  # it brings them as well
            return None
        free = self._not_in_flight(pieces)
        if not free:
            return None
        run = Run(self._shared, layer, free)
        if not self.sends_ranges(layer):
            self._wholes[layer.digest] = run

        async def pause() -> bool:
            with trio.move_on_after(_PAUSE_LIMIT) as scope:
                await self._traffic.give_way(lambda: run.flights.waiting > 0)
            return not scope.cancelled_caught

        try:
            failure = await run.fetch(pause)
        finally:
            self._forget(layer, run)
        if failure is not None and not isinstance(failure, LazyfsError):
            self._tasks.failures.record("fetch", failure, layer.digest)
        return failure

    def _flight(self, digest: bytes) -> Flight | None:
        """What a reader of the chunk joins."""
        return self._flights.get(digest) or self._flights.others(digest)

    def _not_in_flight(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Those that no run is fetching that the background leaves them to."""
        left: dict[RunFlights, bool] = {}
        free = []
        for piece in pieces:
            for flight in self._flights.store_flights.get(piece.chunk.digest):
                run = flight.run
                if run not in left:
                    left[run] = run.source_flights is self._flights or self._other_sources.leaves_to(run)
                if left[run]:
                    break
            else:
                free.append(piece)
        return free

    def pass_over(self, pieces: Sequence[Piece]) -> None:
        """These were waited for in vain while there was another way: for a while others are asked before the source that fetches them,
        which may be another one than this fetcher's."""
        flights = [self._flight(piece.chunk.digest) for piece in pieces]
        for source in {flight.run.source_flights for flight in flights if flight is not None} or {self._flights}:
            source.pass_over()

    @property
    def is_passed_over(self) -> bool:
        """Whether that was a moment ago."""
        return self._flights.is_passed_over

    def _run_state(self, digest: bytes) -> _RunState:
        flight = self._flights.get(digest)
        return _NO_RUN if flight is None else _RunState(flight.run, flight.run.progress.received)

    def _give_up_stalled(self, digest: bytes, before: _RunState) -> None:
        """A reader has missed its deadline. A run that still makes progress goes on, and the next reader finds or joins it."""
        flight = self._flights.get(digest)
        if flight is not None and flight.run is before.run and flight.run.progress.is_stalled(before.received):
            flight.run.give_up()


_NO_RUN: Final = _RunState(None, 0)


def _read_timeout(layer: LayerBlob) -> float:
    return READ_DEADLINE + layer.size / _SLOW_LINE if layer.whole is not None else READ_DEADLINE


@asynccontextmanager
async def open_fetcher(
    store: Store,
    source: ImageSource,
    traffic: Traffic | None = None,
    *,
    store_flights: StoreFlights | None = None,
    failures: Failures | None = None,
) -> AsyncIterator[Fetcher]:
    """A fetcher whose runs live as long as the block: leaving it cancels what is under way. A run that fails ends no other; `failures`
    counts those that fail in a way that nobody expects.

    Fetchers that share a `traffic` share a line: the background of each gives way to the readers of all. Those of one store share its
    `store_flights`: what one fetches, the others do not fetch as well.
    """
    failure: LazyfsError | None = None
    async with trio.open_nursery() as nursery:
        fetcher = Fetcher(store, source, Supervisor(nursery, failures), traffic or Traffic(), store_flights)
        try:
            yield fetcher
        except LazyfsError as error:
            failure = error  # a nursery would wrap it in a group, and it is for the user to read
        finally:
            fetcher.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
