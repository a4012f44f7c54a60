"""Chunks on their way, and everybody who waits for them.

The first who misses a chunk starts its flight; the others join it. That is what makes 64 readers one request.

Every flight belongs to a run, and a run lands only its own: when one has been given up, the next run may have a flight for the same
chunk on the board while the first is still ending.

Each source has a board, with one flight for each chunk at most. All boards of a store share the air: a chunk is the same bytes from
wherever it comes, verified by its digest, so a reader of one source joins a flight of another, and the background leaves the chunk to it.
How long, and what a failure means, is decided in other_sources.py: a source may be silent, or hostile, and its failure is nobody else's answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import trio

from lazyfs.fetch.progress import Progress

_MEMORY: Final = 30.0
"""Seconds for which a source that was passed over is left alone by the readers of others."""


class Flight:
    """Lands once: with the chunk's bytes, with an error, or empty-handed ("look again: the store may have it now")."""

    __slots__ = ("_completed", "_data", "_error", "_waiting", "run")

    def __init__(self, run: RunFlights) -> None:
        self.run = run
        self._waiting = 0
        self._completed = trio.Event()
        self._data: memoryview | None = None
        self._error: Exception | None = None

    def complete(self, data: memoryview | None, error: Exception | None) -> None:
        """Wake everybody."""
        self._data = data if self._waiting else None
        self._error = error
        self._completed.set()

    async def wait(self) -> memoryview | None:
        """The chunk's bytes, or None: look again. Raises the error that ended the flight. Cancelled: the flight goes on."""
        self._waiting += 1
        self.run.waiting += 1
        try:
            await self._completed.wait()
        finally:
            self._waiting -= 1
            self.run.waiting -= 1
        if self._error is not None:
            raise self._error
        return self._data


class RunFlights:
    """The flights of one run. Made by `SourceFlights.take_off`."""

    __slots__ = ("__weakref__", "_flights", "given_up", "progress", "scope", "source_flights", "waiting")

    def __init__(self, source_flights: SourceFlights) -> None:
        self.source_flights = source_flights
        self._flights: dict[bytes, Flight] = {}
        self.waiting = 0
        """Readers who wait for one of them right now."""
        self.progress = Progress()
        self.scope = trio.CancelScope()
        """The run's."""
        self.given_up = False

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def start(self, digest: bytes) -> Flight:
        """The chunk's flight, made and put on the board if it has none."""
        flight = self.source_flights.get(digest)
        if flight is None:
            flight = self._flights[digest] = Flight(self)
            self.source_flights.add(digest, flight)
        return flight

    def complete(self, digest: bytes, data: memoryview | None = None, error: Exception | None = None) -> None:
        """End a flight and take it off the board, so that the next reader asks the store. Nothing happens where it is not ours."""
        flight = self._flights.pop(digest, None)
        if flight is not None:
            self.source_flights.remove(digest)
            flight.complete(data, error)

    def complete_all(self, error: Exception | None = None) -> None:
        """End those that are left."""
        for digest in list(self._flights):
            self.complete(digest, None, error)

    def complete_others(self, digests: set[bytes]) -> None:
        """End all but these, empty-handed."""
        for digest in [each for each in self._flights if each not in digests]:
            self.complete(digest)

    def give_up(self) -> None:
        """The run brings nothing any more: it is ended, and whoever waits looks again, and begins another one."""
        self.given_up = True
        self.scope.cancel()
        self.complete_all()


class StoreFlights:
    """The flights of all sources of one store, by the chunk's digest. Each call is O(1), but for the sources that fetch one chunk."""

    def __init__(self) -> None:
        self._flights: dict[bytes, tuple[Flight, ...]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> tuple[Flight, ...]:
        """A chunk's flights, at most one of each source; the first to take off first."""
        return self._flights.get(digest, ())

    def add(self, digest: bytes, flight: Flight) -> None:
        """For `SourceFlights`."""
        self._flights[digest] = (*self.get(digest), flight)

    def remove(self, digest: bytes, flight: Flight) -> None:
        """For `SourceFlights`."""
        rest = tuple(each for each in self._flights[digest] if each is not flight)
        if rest:
            self._flights[digest] = rest
        else:
            del self._flights[digest]


class SourceFlights:
    """All flights of one source, by the chunk's digest."""

    def __init__(self, store_flights: StoreFlights | None = None) -> None:
        """`store_flights`: what other sources fetch for the same store."""
        self.store_flights = store_flights or StoreFlights()
        self._flights: dict[bytes, Flight] = {}
        self._passed_over = -math.inf

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> Flight | None:
        """The source's own flight."""
        return self._flights.get(digest)

    def others(self, digest: bytes) -> Flight | None:
        """A flight of another source, the first to take off; none of those that were passed over a moment ago."""
        for flight in self.store_flights.get(digest):
            if flight.run.source_flights is not self and not flight.run.source_flights.is_passed_over:
                return flight
        return None

    def pass_over(self) -> None:
        """The source was waited for in vain while there was another one."""
        self._passed_over = trio.current_time()

    @property
    def is_passed_over(self) -> bool:
        """Whether that was a moment ago: others do not join its flights, and are asked before it."""
        return trio.current_time() - self._passed_over < _MEMORY

    def start_run(self, digests: Iterable[bytes]) -> RunFlights:
        """Announce a run: flights for those of the chunks that have none of this source."""
        run = RunFlights(self)
        for digest in digests:
            run.start(digest)
        return run

    def complete_all(self, error: Exception) -> None:
        """End every flight of this source: nothing comes from it any more."""
        for digest, flight in list(self._flights.items()):
            flight.run.complete(digest, None, error)

    def add(self, digest: bytes, flight: Flight) -> None:
        """For `RunFlights`."""
        self._flights[digest] = flight
        self.store_flights.add(digest, flight)

    def remove(self, digest: bytes) -> None:
        """For `RunFlights`, which knows that the flight on the board is its own: none is put there before the last one has gone."""
        self.store_flights.remove(digest, self._flights.pop(digest))
