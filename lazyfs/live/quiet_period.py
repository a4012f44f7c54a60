"""The quiet period: background work waits until containerd has sent no request for a moment.

A pull takes half a second of two processors, and so does the start of the container that follows it. Fetching the rest of the
image at that time would slow down both.
"""

from __future__ import annotations

import math
from typing import Final

import trio

_QUIET: Final = 1.0
_LONGEST: Final = 30.0
"""Maximum wait in seconds, for a machine that is never quiet."""


class QuietPeriod:
    """For the event loop."""

    def __init__(self) -> None:
        self._last_request = -math.inf

    def note_request(self) -> None:
        """containerd has sent a request."""
        self._last_request = trio.current_time()

    async def wait(self) -> None:
        """Wait for the quiet period."""
        last = trio.current_time() + _LONGEST
        while trio.current_time() < (end := min(self._last_request + _QUIET, last)):  # noqa: ASYNC110  polls once a moment, instead of waking at every request
            await trio.sleep_until(end)
