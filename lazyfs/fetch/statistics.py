"""What the fetcher has done so far, as numbers that tests, `lazyfs status` and metrics read."""

from __future__ import annotations

from typing import NamedTuple


class FetchStatistics(NamedTuple):
    """A frozen look at a fetcher."""

    requests: int
    """Range requests begun."""
    received: int
    """Compressed bytes taken off the wire."""
    chunks: int
    """Chunks that arrived and verified."""
    unpacked: int
    """Their bytes."""
    unkept: int
    """Chunks that the store had no room for."""
    wrong: int
    """Runs in which chunks came that were not what the TOC promises, and were fetched once more."""
    errors: dict[str, int]
    """Failures by the name of their cause."""
