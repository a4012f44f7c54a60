"""How long a reader or the background waits for another source that is fetching a chunk already.

Two images with the same layer have two sources, and each would fetch all of it. So a reader joins a flight of the other source,
and the background skips what the other source is fetching. But the image does not depend on the other source, which may be
slow, silent or hostile. A reader waits for it as the gate does while there is an alternative (gate/failover.py): TIMEOUT
seconds for each sign of life, at most WINDOWS times. After that, and after any error, its own source is asked, while the flight
continues.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import trio

from lazyfs.fetch.flight import Flight, RunFlights

TIMEOUT: Final = 5.0
"""Seconds in which a run of another source must show a sign of life."""
WINDOWS: Final = 3
"""How many times a reader waits for that."""
_BACKGROUND: Final = 60.0
"""Seconds after which the background fetches a chunk itself, whatever the signs of life: at 300 KB/s, a run of 16 MiB has
arrived by then.
"""


class _Seen(NamedTuple):
    """The state of a run at the last look."""

    first: float
    """Time of the first look."""
    signs: int
    since: float
    """Time of the last change of `signs`."""


class OtherSources:
    """What one source leaves to others. For the event loop only."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[RunFlights, _Seen] = WeakKeyDictionary()

    def leaves_to(self, run: RunFlights) -> bool:
        """Whether the background leaves the chunks of `run` to it. Called from time to time; nothing waits for the run."""
        now, signs = trio.current_time(), run.progress.signs_of_life
        seen = self._seen.get(run)
        if seen is None or seen.signs != signs:
            seen = self._seen[run] = _Seen(seen.first if seen else now, signs, now)
        return not run.source_flights.is_passed_over and now - seen.since < TIMEOUT and now - seen.first < _BACKGROUND


async def wait_for_other(flight: Flight) -> tuple[bool, memoryview | None]:
    """Wait for a flight of another source. Returns whether it was completed, and its data; None: look again.

    Errors of the other source do not concern the caller: then it returns False. It also does if the other source is silent or
    far too slow, which is then passed over for a while. Cancelled: the flight continues.
    """
    progress = flight.run.progress
    for _ in range(WINDOWS):
        before = progress.signs_of_life
        with trio.move_on_after(TIMEOUT):
            try:
                return True, await flight.wait()
            except Exception:  # noqa: BLE001  the readers of that source get it
                return False, None
        if (
            progress.signs_of_life == before or flight.run.source_flights.is_passed_over
        ):  # the gate, or another reader, has passed it over
            break
    flight.run.source_flights.pass_over()
    return False, None
