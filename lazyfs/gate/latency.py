"""How long misses took: counts of durations, by bounds that are far enough apart to say something and close enough to be believed."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import msgspec

BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds. The last one is that of gate.PATIENCE: what takes longer is answered with an entry."""


class LatencyStatus(msgspec.Struct, frozen=True):
    """What was counted."""

    counts: tuple[int, ...]
    """How many took at most BOUNDS[i], and longer than the bound before; the last one, longer than all."""
    seconds: float
    """All of them together."""

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The bound that at least `share` of them did not take longer than; infinite where none is. 0 where nothing was counted."""
        left = share * self.count
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            left -= count
            if left <= 0:
                return bound if self.count else 0.0
        return float("inf")


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
