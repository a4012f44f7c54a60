"""How much to bring along with a miss.

A miss costs a round trip, whatever it brings; bytes that nobody reads cost the link. So a lone miss takes few
neighbours with it: files that lie side by side are often wanted together (a package's, a directory's). A miss that comes
where an earlier one's bytes ended is a reader on its way through the blob, and each such step doubles what the next
one brings, up to a bound that makes a round trip small beside the transfer.

Steps inside of one file and steps from file to file are counted apart. That a program reads all of its own large
binary says nothing about the files behind it (measured: half of what `python3 -c` fetched was such a neighbour);
`tar` and `cp -r` step from file to file, and soon get long runs.

A lone miss brings nothing along where many miss at once: with 64 readers of files that lie strewn it is the processor that they
wait for, and neighbours would be most of its work (measured: 6,077 files brought for 1,280, in 2.2 s instead of 1.2).

Several readers walk through a layer at once, so the last few walks of each layer are remembered.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lazyfs.fetch.flight import SourceFlights
from lazyfs.fetch.piece import LayerBlob, Piece

FIRST: Final = 32 << 10
"""Compressed bytes that a lone miss brings along: a 10 Mbit link needs 25 ms for them, about one round trip."""
LARGEST: Final = 16 << 20
MOST_PIECES: Final = 4096
"""Chunks of a run, unless one member has more. Each is claimed, and what a claim costs the kernel grows with the number of claims: 35 µs
with so many, 300 µs with 20,000."""
_GAP: Final = 128 << 10
"""A miss this close behind a walk's end still belongs to it: readers skip small files, and what was here already."""
_NEAR: Final = 16 << 10
"""In a crowd: among many readers it is easily chance that one comes close to where another was."""
_WALKS: Final = 16


class Window(NamedTuple):
    """What one miss may bring, in compressed bytes."""

    inside: int
    """From the wanted chunk's start, of the same file."""
    across: int
    """Behind that, of the files that follow."""
    name: str
    """The content that was wanted."""


class Windows:
    """The walks through one layer's blob."""

    def __init__(self) -> None:
        self._walks: dict[int, Window] = {}
        """Where a walk goes on -> the window that brought it there; oldest first."""

    def open(self, piece: Piece, *, crowded: bool) -> Window:
        """What a miss of `piece` may bring. The walk that it belongs to is taken up. `crowded`: many others miss just now."""
        start, name = piece.chunk.member, piece.content.name
        for end, walk in reversed(self._walks.items()):
            if end <= start <= end + (_NEAR if crowded else _GAP):
                del self._walks[end]
                if walk.name == name:
                    return Window(_doubled(walk.inside), walk.across, name)
                across = _doubled(walk.across)
                return Window(across, across, name)
        return Window(0, 0, name) if crowded else Window(FIRST, FIRST, name)

    def note_fetch(self, window: Window, start: int, end: int, same_file: bool) -> None:
        """`[start, end)` is being fetched; a walk may go on at `end`. `same_file`: all of it is the wanted file's."""
        inside = max(window.inside, end - start) if same_file else window.inside
        self._walks.pop(end, None)
        self._walks[end] = window._replace(inside=inside)
        if len(self._walks) > _WALKS:
            del self._walks[next(iter(self._walks))]


def choose_run(layer: LayerBlob, piece: Piece, windows: Windows, flights: SourceFlights, *, crowded: bool) -> list[Piece]:
    """The run for a miss of `piece`, which stands first: the rest of its member, and what the window allows behind it."""
    chosen = [piece]
    window = windows.open(piece, crowded=crowded)
    start = piece.chunk.member
    end = own_end = piece.chunk.member_end
    for position in range(layer.position(start), len(layer.pieces)):
        each = layer.pieces[position]
        chunk = each.chunk
        own = each.content.name == window.name
        if chunk.member != start and chunk.member_end > (start + window.inside if own else own_end + window.across):
            break
        if len(chosen) >= MOST_PIECES and chunk.member != chosen[-1].chunk.member:
            break
        if own:
            own_end = max(own_end, chunk.member_end)
        if chunk.digest not in flights.store_flights and each != piece:
            chosen.append(each)
            end = chunk.member_end
    windows.note_fetch(window, start, end, end == own_end)
    return chosen


def _doubled(size: int) -> int:
    return min(max(2 * size, FIRST), LARGEST)
