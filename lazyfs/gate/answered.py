"""Which objects overlayfs was told of a moment ago.

Between the gate's answer and overlayfs's look at arrived/, an object must not be removed. How long that takes nobody knows: a
caller may be stopped in between. A minute is long enough for all that are not.
"""

from __future__ import annotations

import time
from typing import Final

_MINUTE: Final = 60.0


class Answered:
    """Names, for one to two minutes each. Noted on the event loop, asked for in any thread."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._older: set[str] = set()
        self._turned = time.monotonic()

    def note(self, name: str) -> None:
        """Before it is looked at whether the object is there: whoever removes objects looks here last."""
        now = time.monotonic()
        if now - self._turned >= _MINUTE:
            # After two minutes of silence none of them is recent.
            self._older = self._recent if now - self._turned < 2 * _MINUTE else set()
            self._recent, self._turned = set(), now
        self._recent.add(name)

    def __call__(self, name: str) -> bool:
        """Whether it was noted within the last minute (or, perhaps, the one before)."""
        silent = time.monotonic() - self._turned >= 2 * _MINUTE
        return not silent and (name in self._recent or name in self._older)
