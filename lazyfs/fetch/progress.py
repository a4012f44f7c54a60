"""How far a run has come, for those who decide whether to go on waiting for it.

Progress is counted per run: that other bytes of the image arrive says nothing about the file that somebody waits for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from lazyfs.source.protocol import RangeStream

FLOOR: Final = 4 << 10
"""Bytes in FLOOR_TIME below which a run makes no progress."""
FLOOR_TIME: Final = 20.0
"""Seconds of waiting for the source."""


class Progress:
    """One run's. Read and written on the event loop; each call is O(1)."""

    __slots__ = ("_before", "_since", "_stream", "ahead")

    def __init__(self) -> None:
        self._before = 0
        """Bytes of earlier streams, and of steps that were only counted."""
        self._stream: RangeStream | None = None
        self._since = math.inf
        """When the run began to wait for bytes that have been promised: an answer has begun. Never, while it waits for something else:
        its turn, an answer (which has a deadline of its own), a thread, a pause."""
        self.ahead: Callable[[], int] | None = None
        """While it waits for its turn: how many bytes the runs before it have received."""

    @property
    def received(self) -> int:
        """Compressed bytes that have come, those of an unfinished step included."""
        return self._before if self._stream is None else self._before + self._stream.received

    @property
    def signs_of_life(self) -> int:
        """Changes with every sign of life: a byte of the run, or, while it waits for its turn, of the runs before it."""
        return self.received if self.ahead is None else self.ahead()

    def expect_bytes(self, stream: RangeStream | None = None) -> None:
        """From now on the run waits for bytes, of `stream` where there is one."""
        self._stream = stream or self._stream
        self._since = trio.current_time()

    def pause(self) -> None:
        """From now on the run waits for something other than the source."""
        self._since = math.inf

    def end_stream(self) -> None:
        """The stream ends, at its end or before."""
        self._before = self.received
        self._stream = None
        self._since = math.inf

    def count(self, received: int) -> None:
        """Bytes have come that belong to no stream."""
        self._before += received
        if self._since == math.inf:
            self._since = trio.current_time()

    def is_stalled(self, before: int) -> bool:
        """Whether the source is below the floor. `before` is what had come FLOOR_TIME ago."""
        return trio.current_time() - self._since >= FLOOR_TIME and self.received - before < FLOOR
