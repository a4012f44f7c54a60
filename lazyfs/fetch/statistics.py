"""Statistics of a fetcher, for tests, `lazyfs status` and metrics."""

from __future__ import annotations

from typing import NamedTuple


class FetchStatistics(NamedTuple):
    """The counters at one moment."""

    requests: int
    """Range requests sent."""
    received: int
    """Compressed bytes received."""
    chunks: int
    """Chunks that arrived and were verified."""
    unpacked: int
    """Their uncompressed bytes."""
    unkept: int
    """Chunks that the store had no room for."""
    wrong: int
    """Runs with chunks that did not match the TOC and were fetched again."""
    errors: dict[str, int]
    """Number of failures by the class name of the error."""
