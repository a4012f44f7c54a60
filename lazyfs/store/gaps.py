"""Where each object under way has its first gap.

An object of many chunks is whole when its last chunk is here. To count its rows for every chunk kept would cost the square of their
number. Instead the position of the first missing chunk is remembered: as long as that one is missing the object is not whole, and
when it comes, the gap moves on over what is here already. All moves of one object together cost one look at each of its rows.

A remembered gap is a hint. Rows behind it may be taken away by another process, so "no gap" has to be checked against all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

_OBJECTS: Final = 4096
"""Objects remembered: 150 bytes each. One that is forgotten is looked through from its first chunk on."""
_WIDEST: Final = 4096
"""Positions asked for at once."""

Positions = Callable[[int, int], Sequence[int]]
"""Which positions of [first, last) are here, in order."""


class Gaps:
    """First gaps, by the object's name. Any thread may call it; of two that look at once, the one that saw more is believed."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def at(self, name: str) -> int | None:
        """The first gap as it was when somebody looked last; None where nobody has, or it was forgotten."""
        return self._first.get(name)

    def look(self, name: str, chunks: int, positions: Positions) -> int:
        """The first gap now; `chunks`, the number of the object's chunks, where there is none."""
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
        """Remember a gap that was found otherwise."""
        self._first.pop(name, None)
        self._first[name] = first
        if len(self._first) > _OBJECTS:
            self.forget(next(iter(self._first), name))

    def forget(self, name: str) -> None:
        """The object is whole, or some of its rows are gone."""
        self._first.pop(name, None)

    def clear(self) -> None:
        """All rows may be gone."""
        self._first.clear()
