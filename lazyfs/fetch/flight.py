"""Chunks on their way, and everybody who waits for them.

The first who misses a chunk starts its flight; the others join it. That is what makes 64 readers one request.

Every flight belongs to a run, and a run lands only its own: when one has been given up, the next run may have a flight for the same
chunk on the board while the first is still ending.

Each source has a board, with one flight for each chunk at most. All boards of a store share the air: a chunk is the same bytes from
wherever it comes, verified by its digest, so a reader of one source joins a flight of another, and the background leaves the chunk to it.
How long, and what a failure means, is decided in others.py: a source may be silent, or hostile, and its failure is nobody else's answer.
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

    __slots__ = ("_data", "_error", "_landed", "_waiting", "run")

    def __init__(self, run: Flights) -> None:
        self.run = run
        self._waiting = 0
        self._landed = trio.Event()
        self._data: memoryview | None = None
        self._error: Exception | None = None

    def land(self, data: memoryview | None, error: Exception | None) -> None:
        """Wake everybody."""
        self._data = data if self._waiting else None
        self._error = error
        self._landed.set()

    async def wait(self) -> memoryview | None:
        """The chunk's bytes, or None: look again. Raises the error that ended the flight. Cancelled: the flight goes on."""
        self._waiting += 1
        self.run.waiting += 1
        try:
            await self._landed.wait()
        finally:
            self._waiting -= 1
            self.run.waiting -= 1
        if self._error is not None:
            raise self._error
        return self._data


class Flights:
    """The flights of one run. Made by `Board.take_off`."""

    __slots__ = ("__weakref__", "_air", "board", "given_up", "progress", "scope", "waiting")

    def __init__(self, board: Board) -> None:
        self.board = board
        self._air: dict[bytes, Flight] = {}
        self.waiting = 0
        """Readers who wait for one of them right now."""
        self.progress = Progress()
        self.scope = trio.CancelScope()
        """The run's."""
        self.given_up = False

    def __len__(self) -> int:
        return len(self._air)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._air

    def take_off(self, digest: bytes) -> Flight:
        """The chunk's flight, made and put on the board if it has none."""
        flight = self.board.get(digest)
        if flight is None:
            flight = self._air[digest] = Flight(self)
            self.board.put(digest, flight)
        return flight

    def land(self, digest: bytes, data: memoryview | None = None, error: Exception | None = None) -> None:
        """End a flight and take it off the board, so that the next reader asks the store. Nothing happens where it is not ours."""
        flight = self._air.pop(digest, None)
        if flight is not None:
            self.board.take_away(digest)
            flight.land(data, error)

    def land_all(self, error: Exception | None = None) -> None:
        """End those that are left."""
        for digest in list(self._air):
            self.land(digest, None, error)

    def land_others(self, digests: set[bytes]) -> None:
        """End all but these, empty-handed."""
        for digest in [each for each in self._air if each not in digests]:
            self.land(digest)

    def give_up(self) -> None:
        """The run brings nothing any more: it is ended, and whoever waits looks again, and begins another one."""
        self.given_up = True
        self.scope.cancel()
        self.land_all()


class Air:
    """The flights of all sources of one store, by the chunk's digest. Each call is O(1), but for the sources that fetch one chunk."""

    def __init__(self) -> None:
        self._flights: dict[bytes, tuple[Flight, ...]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> tuple[Flight, ...]:
        """A chunk's flights, at most one of each source; the first to take off first."""
        return self._flights.get(digest, ())

    def put(self, digest: bytes, flight: Flight) -> None:
        """For `Board`."""
        self._flights[digest] = (*self.get(digest), flight)

    def take_away(self, digest: bytes, flight: Flight) -> None:
        """For `Board`."""
        rest = tuple(each for each in self._flights[digest] if each is not flight)
        if rest:
            self._flights[digest] = rest
        else:
            del self._flights[digest]


class Board:
    """All flights of one source, by the chunk's digest."""

    def __init__(self, air: Air | None = None) -> None:
        """`air`: what other sources fetch for the same store."""
        self.air = air or Air()
        self._flights: dict[bytes, Flight] = {}
        self._passed_over = -math.inf

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> Flight | None:
        """The source's own flight."""
        return self._flights.get(digest)

    def others(self, digest: bytes) -> Flight | None:
        """A flight of another source, the first to take off; none of those that were passed over a moment ago."""
        for flight in self.air.get(digest):
            if flight.run.board is not self and not flight.run.board.is_passed_over:
                return flight
        return None

    def pass_over(self) -> None:
        """The source was waited for in vain while there was another one."""
        self._passed_over = trio.current_time()

    @property
    def is_passed_over(self) -> bool:
        """Whether that was a moment ago: others do not join its flights, and are asked before it."""
        return trio.current_time() - self._passed_over < _MEMORY

    def take_off(self, digests: Iterable[bytes]) -> Flights:
        """Announce a run: flights for those of the chunks that have none of this source."""
        run = Flights(self)
        for digest in digests:
            run.take_off(digest)
        return run

    def land_all(self, error: Exception) -> None:
        """End every flight of this source: nothing comes from it any more."""
        for digest, flight in list(self._flights.items()):
            flight.run.land(digest, None, error)

    def put(self, digest: bytes, flight: Flight) -> None:
        """For `Flights`."""
        self._flights[digest] = flight
        self.air.put(digest, flight)

    def take_away(self, digest: bytes) -> None:
        """For `Flights`, which knows that the flight on the board is its own: none is put there before the last one has gone."""
        self.air.take_away(digest, self._flights.pop(digest))
