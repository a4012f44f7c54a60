"""How long misses took: counts of durations, by bounds that are far enough apart to say something and close enough to be believed."""

from __future__ import annotations

from bisect import bisect_left

from lazyfs.reports.status import BOUNDS, LatencyStatus


class Latency:
    """Counts. Not for threads."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        """One took so long."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def status(self) -> LatencyStatus:
        """So far."""
        return LatencyStatus(tuple(self._counts), self._seconds)
