"""What nobody waits for is put off until containerd has asked for nothing for a moment.

A pull takes half a second of two processors, and so does a container's start behind it: the rest of the image, fetched meanwhile, would
take it from both.
"""

from __future__ import annotations

import math
from typing import Final

import trio

_QUIET: Final = 1.0
_LONGEST: Final = 30.0
"""Seconds that are waited for at most, on a machine that never rests."""


class QuietPeriod:
    """Not for threads."""

    def __init__(self) -> None:
        self._last_request = -math.inf

    def note_request(self) -> None:
        """containerd asks for something."""
        self._last_request = trio.current_time()

    async def wait(self) -> None:
        """Until it has not for a moment."""
        last = trio.current_time() + _LONGEST
        while trio.current_time() < (end := min(self._last_request + _QUIET, last)):  # noqa: ASYNC110  once a moment, not once a question
            await trio.sleep_until(end)
