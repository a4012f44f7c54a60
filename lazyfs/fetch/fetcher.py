"""The fetcher: returns every byte of a file, from the store if it is there, else from the source.

A miss is handled in this order:

1. If the chunk is in flight, wait for the flight. For a flight of another source, wait only for a limited time
   (other_sources.py).
2. Else choose a run: the chunk, and as many missing neighbours behind it as the window allows (window.py). All get a flight at
   once, so that no second run can include them.
3. In a thread, claim the run and look again. Chunks that have arrived meanwhile, that are copied from another file of the
   store, or that another process has claimed, leave the run. Short runs that begin at the same time do this together, and are
   unpacked together (batcher.py).
4. Send one range request. Each chunk completes its flight as soon as it is verified and kept.

A layer without ranges, because it is eager or the source ignores them, is fetched whole: one run at a time, which other readers
join, and which keeps everything that is missing of it.

A reader waits for a deadline, a run for progress (run.py). So a chunk that takes longer than a reader waits is available to a
later read, and each of its bytes is fetched once.
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
"""Seconds after which a read that waits for the network fails."""
CLAIM_TIMEOUT: Final = 20.0
"""Seconds for which a reader leaves a chunk to the process that has claimed it. That process may hang or be stopped."""
_SLOW_LINE: Final = 1_000_000
"""Bytes per second that a source must deliver of a layer that is fetched whole; its size at that speed is added to the
deadline, because it may have gigabytes.
"""
_CROWD: Final = 8
"""Number of runs, active or waiting for a slot, from which on a lone miss fetches no neighbours."""
_LARGE: Final = 512 << 10
"""Compressed size of a member from which on a run counts as large: it is held in memory as a whole until it is unpacked."""
_PAUSE_LIMIT: Final = 5.0
"""Seconds for which the background gives way within a run. After that it gives up the run: a reader of another process may be
waiting for its claims, and servers time out.
"""


class _RunState(NamedTuple):
    """The run that fetches a chunk at some moment, and how far it had got."""

    run: RunFlights | None
    received: int


class Fetcher:
    """Reads chunks of one image's layers. Made by `open_fetcher`."""

    def __init__(
        self,
        store: Store,
        source: ImageSource,
        tasks: Supervisor,
        traffic: Traffic,
        store_flights: StoreFlights | None = None,
        image: str = "",
    ) -> None:
        self._store = store
        self._source = source
        self._tasks = tasks
        self._traffic = traffic
        self._shared = Shared(store, source, store_flights, image)
        self._flights = self._shared.flights
        self._other_sources = OtherSources()
        self._windows: dict[str, Windows] = {}
        self._wholes: dict[Digest, Run] = {}
        """By layer: the run that fetches all of it."""
        self._runs = 0
        """Runs of readers, active or waiting for a slot."""
        self._closed = False

    @property
    def image(self) -> str:
        """The image, or the repository of shared layers, for the log."""
        return self._shared.image

    def statistics(self) -> FetchStatistics:
        """Statistics so far."""
        c = self._shared.counts
        unkept = self._shared.unkept.count
        return FetchStatistics(
            c["requests"], c["received"], c["chunks"], c["unpacked"], unkept, c["wrong"], dict(self._shared.errors)
        )

    def sends_ranges(self, layer: LayerBlob) -> bool:
        """False for an eager layer, and for a layer of which the source has answered a range request with the whole blob."""
        return layer.whole is None and layer.digest not in self._shared.rangeless

    def signs_of_life(self, pieces: Sequence[Piece]) -> int:
        """Changes whenever a run that fetches these pieces receives a byte, or, while it waits for a slot, a run before it
        does. 0 if none is in flight."""
        flights = [self._flight(piece.chunk.digest) for piece in pieces]
        return sum(run.progress.signs_of_life for run in {flight.run for flight in flights if flight is not None})

    async def read(self, layer: LayerBlob, piece: Piece, start: int, length: int) -> bytes | memoryview:
        """Bytes `[start, start + length)` of a chunk.

        Raises SourceError if they do not arrive before the deadline, InvalidInput if they are not what the TOC says. The next
        read tries again. Cancelled: what is in flight still arrives.
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
                        stored = await trio.to_thread.run_sync(look, limiter=self._shared.readers)
                        if stored is not None:
                            return stored
                    with self._traffic.reader():
                        data = await self._wait_for(layer, piece, since, end)
                    if data is not None:
                        return data[start : start + length]
                    since = min(since, trio.current_time())
        self._give_up_stalled(digest, before)
        self._shared.errors[Unreachable.__name__] += 1
        raise Unreachable(
            f"{self.image} did not deliver layer {layer.digest} at offset {piece.chunk.member},"
            f" of object {piece.content.name}, in {timeout:.0f} s"
        )

    async def fetch_object(self, layer: LayerBlob, piece: Piece) -> bool:
        """Create the object of a single chunk, for a reader that will open it by name. False if the store does not accept it.

        Does not look in the store first: the caller has missed it there. Raises as `read`, but has no deadline of its own.
        Cancelled: what is in flight still arrives.
        """
        digest = piece.chunk.digest
        place = self._store.directory.objects + piece.content.name
        suspicious = False
        since = math.inf
        while digest not in self._shared.unkept:
            with self._traffic.reader():
                data = await self._wait_for(layer, piece, since, trio.current_time() + READ_DEADLINE)
            # The chunk may have been kept as part of another file, or not at all for lack of room.
            if data is not None and os.path.exists(place):
                return True
            # Most flights that end without data were dropped from a run; this look saves the thread. But an object that never
            # appears may be one that the index has and the disk has not.
            if (suspicious or os.path.exists(place)) and await trio.to_thread.run_sync(
                self._store.publish, piece.content, limiter=self._shared.readers
            ):
                return True
            suspicious = True
            since = min(since, trio.current_time())
        return False

    def close(self) -> None:
        """The image is gone. Readers that wait for one of its own flights get an error, and so do later readers."""
        self._closed = True
        self._flights.complete_all(self._closed_error())

    def _closed_error(self) -> Unreachable:
        return Unreachable(f"{self.image} is no longer mounted")

    async def _wait_for(self, layer: LayerBlob, piece: Piece, since: float, deadline: float) -> memoryview | None:
        """Wait for the piece's flight. `since`: when the reader first found that no flight had delivered the piece; another
        process may have claimed it."""
        flight = self._flights.get(piece.chunk.digest)
        if flight is not None:
            try:
                return await flight.wait()
            except SourceError:
                pass  # another reader's run failed, perhaps far from this chunk: try once with a run of our own
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
        """Start a run for `piece`, or join the run that fetches all of the layer."""
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
            self._tasks.start_soon("fetch", self._run, layer, run, slots, subject=self._subject(layer))
        except BaseException as error:
            run.flights.complete_all(error if isinstance(error, Exception) else None)  # nobody else completes them
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

    def _subject(self, layer: LayerBlob) -> str:
        return f"layer {layer.digest} of {self.image}"

    def _end_run(self, layer: LayerBlob, run: Run) -> None:
        self._runs -= 1
        self._forget(layer, run)

    def _forget(self, layer: LayerBlob, run: Run) -> None:
        if self._wholes.get(layer.digest) is run:
            del self._wholes[layer.digest]

    async def fetch(self, layer: LayerBlob, pieces: Sequence[Piece]) -> Exception | None:
        """Fetch `pieces` for the background, giving way to readers. Returns the error, if there was one.

        Cancelled: stops; what has arrived is kept.
        """
        await self._traffic.give_way(lambda: False)
        whole = None if self.sends_ranges(layer) else self._wholes.get(layer.digest)
        if whole is not None and not whole.has_ended:
            await whole.wait_for_end()  # it fetches these as well
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
            self._tasks.failures.record("fetch", failure, self._subject(layer))
        return failure

    def _flight(self, digest: bytes) -> Flight | None:
        """The flight that a reader of the chunk joins."""
        return self._flights.get(digest) or self._flights.others(digest)

    def _not_in_flight(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces that no run is fetching, except for runs that the background does not wait for."""
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
        """A reader waited for these in vain while there was another source. For a while, others are preferred to the source
        that fetches them, which may be another one than this fetcher's."""
        flights = [self._flight(piece.chunk.digest) for piece in pieces]
        for source in {flight.run.source_flights for flight in flights if flight is not None} or {self._flights}:
            source.pass_over()

    @property
    def is_passed_over(self) -> bool:
        """Whether that happened a moment ago."""
        return self._flights.is_passed_over

    def _run_state(self, digest: bytes) -> _RunState:
        flight = self._flights.get(digest)
        return _NO_RUN if flight is None else _RunState(flight.run, flight.run.progress.received)

    def _give_up_stalled(self, digest: bytes, before: _RunState) -> None:
        """A reader has missed its deadline. A run that makes progress continues, and the next reader finds the chunk or joins
        the run."""
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
    image: str = "",
) -> AsyncIterator[Fetcher]:
    """A fetcher whose runs live as long as the block: leaving it cancels what is in flight. A failed run ends no other;
    `failures` counts unexpected errors.

    Fetchers with the same `traffic` share a line: the background of each gives way to the readers of all. Fetchers with the
    same `store_flights`, those of one store, do not fetch the same chunk twice. `image` names it in the log; default: the source's
    name.
    """
    failure: LazyfsError | None = None
    async with trio.open_nursery() as nursery:
        fetcher = Fetcher(store, source, Supervisor(nursery, failures), traffic or Traffic(), store_flights, image)
        try:
            yield fetcher
        except LazyfsError as error:
            failure = error  # a nursery would wrap it in a group, and it is for the user to read
        finally:
            fetcher.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
