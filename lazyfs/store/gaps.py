"""The first gap of each unfinished object.

An object of many chunks is complete when its last chunk arrives. Counting its rows after every chunk would take quadratic time.
Instead, the position of the first missing chunk is remembered. While that chunk is missing, the object is not complete; when it
arrives, the gap moves past the chunks that are in the store already. All moves of one object together look at each row once.

A remembered gap is a hint: another process may delete rows before it. So "no gap" has to be verified against all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

_OBJECTS: Final = 4096
"""Objects that are remembered, 150 bytes each. A forgotten one is scanned from its first chunk."""
_WIDEST: Final = 4096
"""Positions per query."""

Positions = Callable[[int, int], Sequence[int]]
"""The positions in [first, last) that have rows, in order."""


class Gaps:
    """First gaps by object name. Any thread may call it. Of two concurrent looks, the one that got further wins."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def at(self, name: str) -> int | None:
        """The first gap at the last look; None if unknown."""
        return self._first.get(name)

    def look(self, name: str, chunks: int, positions: Positions) -> int:
        """Find the first gap; `chunks`, the number of chunks of the object, if there is none."""
        first = self._first.get(name, 0)
        width = 1
        while first < chunks:
            last = min(first + width, chunks)
            for position in positions(first, last):
                if position != first:
                    break
                first += 1
            if first < last:
                break
            width = min(2 * width, _WIDEST)
        if first >= self._first.get(name, 0):
            self.set(name, first)
        return first

    def set(self, name: str, first: int) -> None:
        """Remember a gap that was found in another way."""
        self._first.pop(name, None)
        self._first[name] = first
        if len(self._first) > _OBJECTS:
            self.forget(next(iter(self._first), name))

    def forget(self, name: str) -> None:
        """The object is complete, or has lost rows."""
        self._first.pop(name, None)

    def clear(self) -> None:
        """Any row may be gone."""
        self._first.clear()
