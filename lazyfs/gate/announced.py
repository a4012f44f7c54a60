"""Which objects overlayfs was told of a moment ago.

Between the gate's answer and overlayfs's look at arrived/, an object must not be removed. How long that takes nobody knows: a
caller may be stopped in between. A minute is long enough for all that are not.
"""

from __future__ import annotations

import time
from typing import Final

_PERIOD: Final = 60.0


class RecentlyAnnounced:
    """Names, for one to two minutes each. Noted on the event loop, asked for in any thread."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._older: set[str] = set()
        self._rotated = time.monotonic()

    def note(self, name: str) -> None:
        """Before it is looked at whether the object is there: whoever removes objects looks here last."""
        now = time.monotonic()
        if now - self._rotated >= _PERIOD:
            # After two minutes of silence none of them is recent.
            self._older = self._recent if now - self._rotated < 2 * _PERIOD else set()
            self._recent, self._rotated = set(), now
        self._recent.add(name)

    def __call__(self, name: str) -> bool:
        """Whether it was noted within the last minute (or, perhaps, the one before)."""
        silent = time.monotonic() - self._rotated >= 2 * _PERIOD
        return not silent and (name in self._recent or name in self._older)
