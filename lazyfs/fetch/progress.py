"""The progress of a run, for deciding whether to wait for it any longer.

It is counted per run: other bytes of the image say nothing about the file that a reader waits for.
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
    """Progress of one run. For the event loop; each call is O(1)."""

    __slots__ = ("_before", "_since", "_stream", "ahead")

    def __init__(self) -> None:
        self._before = 0
        """Bytes of earlier streams, and bytes that belong to no stream."""
        self._stream: RangeStream | None = None
        self._since = math.inf
        """Since when the run has been waiting for bytes of a response that has begun. Infinite while it waits for anything
        else: a slot, a response (which has its own deadline), a thread, a pause."""
        self.ahead: Callable[[], int] | None = None
        """While the run waits for a slot: the number of bytes that the runs before it have received."""

    @property
    def received(self) -> int:
        """Compressed bytes received, including those of an unfinished step."""
        return self._before if self._stream is None else self._before + self._stream.received

    @property
    def signs_of_life(self) -> int:
        """Changes with every sign of life: a byte for the run, or, while it waits for a slot, for a run before it."""
        return self.received if self.ahead is None else self.ahead()

    def expect_bytes(self, stream: RangeStream | None = None) -> None:
        """The run now waits for bytes, from `stream` if given."""
        self._stream = stream or self._stream
        self._since = trio.current_time()

    def pause(self) -> None:
        """The run now waits for something other than the source."""
        self._since = math.inf

    def end_stream(self) -> None:
        """The stream has ended, complete or not."""
        self._before = self.received
        self._stream = None
        self._since = math.inf

    def count(self, received: int) -> None:
        """Count bytes that belong to no stream."""
        self._before += received
        if self._since == math.inf:
            self._since = trio.current_time()

    def is_stalled(self, before: int) -> bool:
        """Whether the source is slower than FLOOR. `before`: what `received` was FLOOR_TIME ago."""
        return trio.current_time() - self._since >= FLOOR_TIME and self.received - before < FLOOR
