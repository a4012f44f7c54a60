"""Flights: chunks being fetched, and the readers that wait for them.

The first reader to miss a chunk starts its flight; the others join it. So 64 readers cause one request.

Every flight belongs to a run, and a run completes only its own flights. When a run was given up, the next one may have a flight
for the same chunk while the first is still ending.

A source has at most one flight for each chunk (SourceFlights). All sources of a store share their flights (StoreFlights):
wherever it comes from, a chunk has the same bytes, verified by its digest. So a reader of one source joins a flight of another,
and the background leaves the chunk to it. For how long, and what a failure means, is decided in other_sources.py: a source may
be silent or hostile, and its failure says nothing about another source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import trio

from lazyfs.fetch.progress import Progress

_MEMORY: Final = 30.0
"""Seconds for which readers of other sources avoid a source that was passed over."""


class Flight:
    """Completed once: with the chunk's bytes, with an error, or without either ("look again: the store may have it now")."""

    __slots__ = ("_completed", "_data", "_error", "_waiting", "run")

    def __init__(self, run: RunFlights) -> None:
        self.run = run
        self._waiting = 0
        self._completed = trio.Event()
        self._data: memoryview | None = None
        self._error: Exception | None = None

    def complete(self, data: memoryview | None, error: Exception | None) -> None:
        """Wake all readers."""
        self._data = data if self._waiting else None
        self._error = error
        self._completed.set()

    async def wait(self) -> memoryview | None:
        """The chunk's bytes; None: look again. Raises the error of the flight. Cancelled: the flight continues."""
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
    """The flights of one run. Made by `SourceFlights.start_run`."""

    __slots__ = ("__weakref__", "_flights", "given_up", "progress", "scope", "source_flights", "waiting")

    def __init__(self, source_flights: SourceFlights) -> None:
        self.source_flights = source_flights
        self._flights: dict[bytes, Flight] = {}
        self.waiting = 0
        """Number of readers that wait for one of them."""
        self.progress = Progress()
        self.scope = trio.CancelScope()
        """Cancelled when the run is given up."""
        self.given_up = False

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def start(self, digest: bytes) -> Flight:
        """The source's flight for the chunk, started if there is none."""
        flight = self.source_flights.get(digest)
        if flight is None:
            flight = self._flights[digest] = Flight(self)
            self.source_flights.add(digest, flight)
        return flight

    def complete(self, digest: bytes, data: memoryview | None = None, error: Exception | None = None) -> None:
        """Complete a flight and forget it, so that the next reader asks the store. Does nothing if it is not this run's flight."""
        flight = self._flights.pop(digest, None)
        if flight is not None:
            self.source_flights.remove(digest)
            flight.complete(data, error)

    def complete_all(self, error: Exception | None = None) -> None:
        """Complete all remaining flights."""
        for digest in list(self._flights):
            self.complete(digest, None, error)

    def complete_others(self, digests: set[bytes]) -> None:
        """Complete all flights but these, without data."""
        for digest in [each for each in self._flights if each not in digests]:
            self.complete(digest)

    def give_up(self) -> None:
        """The run is stalled: end it. Its readers look again, and start another run."""
        self.given_up = True
        self.scope.cancel()
        self.complete_all()


class StoreFlights:
    """The flights of all sources of one store, by chunk digest. Each call is O(1) in all but the number of sources that fetch
    one chunk."""

    def __init__(self) -> None:
        self._flights: dict[bytes, tuple[Flight, ...]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> tuple[Flight, ...]:
        """The flights for a chunk, at most one per source, in the order in which they started."""
        return self._flights.get(digest, ())

    def add(self, digest: bytes, flight: Flight) -> None:
        """Called by `SourceFlights`."""
        self._flights[digest] = (*self.get(digest), flight)

    def remove(self, digest: bytes, flight: Flight) -> None:
        """Called by `SourceFlights`."""
        rest = tuple(each for each in self._flights[digest] if each is not flight)
        if rest:
            self._flights[digest] = rest
        else:
            del self._flights[digest]


class SourceFlights:
    """All flights of one source, by chunk digest."""

    def __init__(self, store_flights: StoreFlights | None = None) -> None:
        """`store_flights`: shared with the other sources of the same store."""
        self.store_flights = store_flights or StoreFlights()
        self._flights: dict[bytes, Flight] = {}
        self._passed_over = -math.inf

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> Flight | None:
        """The source's own flight."""
        return self._flights.get(digest)

    def others(self, digest: bytes) -> Flight | None:
        """The first flight of another source that was not passed over a moment ago."""
        for flight in self.store_flights.get(digest):
            if flight.run.source_flights is not self and not flight.run.source_flights.is_passed_over:
                return flight
        return None

    def pass_over(self) -> None:
        """Readers waited for the source in vain while there was another one."""
        self._passed_over = trio.current_time()

    @property
    def is_passed_over(self) -> bool:
        """Whether that happened a moment ago. Then others do not join its flights, and are asked before it."""
        return trio.current_time() - self._passed_over < _MEMORY

    def start_run(self, digests: Iterable[bytes]) -> RunFlights:
        """Start a run, with flights for those of the chunks that have no flight of this source."""
        run = RunFlights(self)
        for digest in digests:
            run.start(digest)
        return run

    def complete_all(self, error: Exception) -> None:
        """Complete every flight of this source: it delivers nothing any more."""
        for digest, flight in list(self._flights.items()):
            flight.run.complete(digest, None, error)

    def add(self, digest: bytes, flight: Flight) -> None:
        """Called by `RunFlights`."""
        self._flights[digest] = flight
        self.store_flights.add(digest, flight)

    def remove(self, digest: bytes) -> None:
        """Called by `RunFlights`, whose own flight it is: no other is added before this one is removed."""
        self.store_flights.remove(digest, self._flights.pop(digest))
