"""A histogram of how long misses took."""

from __future__ import annotations

from bisect import bisect_left

from lazyfs.reports.status import BOUNDS, LatencyStatus


class Latency:
    """Counts and the sum of durations. For one thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        """Add one duration."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def status(self) -> LatencyStatus:
        """The counts so far."""
        return LatencyStatus(tuple(self._counts), self._seconds)
