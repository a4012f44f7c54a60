"""Recently announced objects: names for which overlayfs was sent to arrived/ a moment ago.

Between the gate's answer and overlayfs's look at arrived/, an object must not be removed. The time in between is unbounded,
because the caller may be stopped. A minute is enough for all callers that are not.
"""

from __future__ import annotations

import time
from typing import Final

_PERIOD: Final = 60.0


class RecentlyAnnounced:
    """Names, kept for one to two minutes. Added on the event loop; any thread may ask."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._older: set[str] = set()
        self._rotated = time.monotonic()

    def note(self, name: str) -> None:
        """Add a name, before checking that the object exists: eviction checks the names last."""
        now = time.monotonic()
        if now - self._rotated >= _PERIOD:
            # After a pause of two periods, none of the names is recent.
            self._older = self._recent if now - self._rotated < 2 * _PERIOD else set()
            self._recent, self._rotated = set(), now
        self._recent.add(name)

    def __call__(self, name: str) -> bool:
        """Whether the name was added within the last minute, or possibly two."""
        silent = time.monotonic() - self._rotated >= 2 * _PERIOD
        return not silent and (name in self._recent or name in self._older)
