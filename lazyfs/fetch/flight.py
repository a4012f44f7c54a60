"""One chunk on its way, and everybody who waits for it.

The first who misses a chunk starts its flight; the others join it. That is what makes 64 readers one request.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio


class Flight:
    """Lands once: with the chunk's bytes, with an error, or empty-handed ("look again: the store may have it now")."""

    def __init__(self) -> None:
        self.waiting = 0
        """Readers who wait right now."""
        self._landed = trio.Event()
        self._data: memoryview | None = None
        self._error: Exception | None = None

    def land(self, data: memoryview | None, error: Exception | None) -> None:
        """Wake everybody."""
        self._data = data if self.waiting else None
        self._error = error
        self._landed.set()

    async def wait(self) -> memoryview | None:
        """The chunk's bytes, or None: look again. Raises the error that ended the flight. Cancelled: the flight goes on."""
        self.waiting += 1
        try:
            await self._landed.wait()
        finally:
            self.waiting -= 1
        if self._error is not None:
            raise self._error
        return self._data


class Board:
    """All flights in the air, by the chunk's digest."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._flights

    def get(self, digest: bytes) -> Flight | None:
        """The flight to join, if there is one."""
        return self._flights.get(digest)

    def take_off(self, digests: Iterable[bytes]) -> None:
        """Announce flights for chunks that have none."""
        for digest in digests:
            self._flights.setdefault(digest, Flight())

    def land(self, digest: bytes, data: memoryview | None = None, error: Exception | None = None) -> None:
        """End a flight and take it off the board, so that the next reader asks the store. One landing too many is harmless."""
        flight = self._flights.pop(digest, None)
        if flight is not None:
            flight.land(data, error)

    def land_all(self, error: Exception) -> None:
        """End every flight: nothing comes any more."""
        for digest in list(self._flights):
            self.land(digest, None, error)

    def awaited(self, digests: Iterable[bytes]) -> bool:
        """Whether somebody waits for one of these."""
        return any(flight.waiting for digest in digests if (flight := self._flights.get(digest)) is not None)
