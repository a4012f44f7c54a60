"""How long a chunk is left to another source that is fetching it already.

Two images that share a layer come from two sources, and would each fetch all of it. So a reader joins a flight of another source, and the
background passes by what another source is fetching. But that source is nothing that this image depends on: it may be slow, silent or
hostile. A reader waits for it as the gate waits while there is another way (gate/failover.py): TIMEOUT seconds for each sign of life, and WINDOWS
times that at most. Then, and after any failure, its own source is asked, beside the flight that goes on.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import trio

from lazyfs.fetch.flight import Flight, RunFlights

TIMEOUT: Final = 5.0
"""Seconds that a run of another source has for a sign of life."""
WINDOWS: Final = 3
"""How often a reader grants them."""
_BACKGROUND: Final = 60.0
"""Seconds after which the background fetches a chunk itself, whatever signs there are: at 300 KB/s a run of 16 MiB has come by then."""


class _Seen(NamedTuple):
    """A run, as it was when it was looked at."""

    first: float
    """When that was for the first time."""
    signs: int
    since: float
    """When they changed last."""


class OtherSources:
    """What one source leaves to others. Used on the event loop only."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[RunFlights, _Seen] = WeakKeyDictionary()

    def leaves_to(self, run: RunFlights) -> bool:
        """Whether the background leaves to `run` what it fetches. Looked at now and then: it is not waited for."""
        now, signs = trio.current_time(), run.progress.signs_of_life
        seen = self._seen.get(run)
        if seen is None or seen.signs != signs:
            seen = self._seen[run] = _Seen(seen.first if seen else now, signs, now)
        return not run.source_flights.is_passed_over and now - seen.since < TIMEOUT and now - seen.first < _BACKGROUND


async def wait_for_other(flight: Flight) -> tuple[bool, memoryview | None]:
    """Wait for a flight of another source. Whether it has landed, and its data; None: look again.

    Whatever goes wrong there is not for the caller: it has not landed then. Nor has it where the source is silent, or far too slow: it is
    passed over for a while. Cancelled: the flight goes on.
    """
    progress = flight.run.progress
    for _ in range(WINDOWS):
        before = progress.signs_of_life
        with trio.move_on_after(TIMEOUT):
            try:
                return True, await flight.wait()
            except Exception:  # noqa: BLE001  the readers of that source get it
                return False, None
        if progress.signs_of_life == before or flight.run.source_flights.is_passed_over:  # by the gate, or another reader
            break
    flight.run.source_flights.pass_over()
    return False, None
