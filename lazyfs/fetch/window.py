"""How much to bring along with a miss.

A miss costs a round trip, whatever it brings; bytes that nobody reads cost the link. So a lone miss takes few
neighbours with it: files that lie side by side are often wanted together (a package's, a directory's). A miss that comes where
an earlier one's bytes ended is a reader on its way through the blob (`tar`, `cp -r`, one large file), and each such
step doubles what the next one brings, up to a bound that makes a round trip small beside the transfer.

Several readers walk through a layer at once, so the last few walks of each layer are remembered.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 32 << 10
"""Compressed bytes that a lone miss brings: a 10 Mbit link needs 25 ms for them, about one round trip."""
LARGEST: Final = 16 << 20
_GAP: Final = 128 << 10
"""A miss this close behind a walk's end still belongs to it: readers skip small files, and what was here already."""
_WALKS: Final = 16


class Windows:
    """The walks through one layer's blob."""

    def __init__(self) -> None:
        self._walks: dict[int, int] = {}
        """End of what was asked for -> the window that brought it; oldest first."""

    def size_for(self, start: int) -> int:
        """Compressed bytes to ask for from blob offset `start` on. The walk it belongs to is taken up."""
        for end, window in reversed(self._walks.items()):
            if end <= start <= end + _GAP:
                del self._walks[end]
                return min(2 * window, LARGEST)
        return FIRST

    def asked(self, start: int, end: int) -> None:
        """`[start, end)` is being fetched now; a walk may go on at `end`."""
        self._walks.pop(end, None)
        self._walks[end] = max(end - start, FIRST)
        if len(self._walks) > _WALKS:
            del self._walks[next(iter(self._walks))]
