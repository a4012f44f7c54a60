"""How much to fetch along with a miss.

A miss costs a round trip, however much it fetches; bytes that nobody reads cost the link. So a lone miss fetches few
neighbours: files that are side by side are often wanted together (those of a package or a directory). A miss where the bytes of
an earlier one ended comes from a reader on its way through the blob. Each such step doubles the next window, up to a bound
where the round trip is small beside the transfer.

Steps within a file and steps from file to file are counted separately. A program that reads all of its own large binary says
nothing about the files behind it (measured: half of what `python3 -c` fetched were such neighbours); `tar` and `cp -r` step
from file to file, and soon get long runs.

Where many readers miss at once, a lone miss fetches no neighbours: with 64 readers of scattered files, the CPU is the
bottleneck, and neighbours would be most of its work (measured: 6,077 files fetched for 1,280, in 2.2 s instead of 1.2).

Several readers walk through a layer at once, so the last few walks of each layer are remembered.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lazyfs.fetch.flight import SourceFlights
from lazyfs.fetch.piece import LayerBlob, Piece

FIRST: Final = 32 << 10
"""Compressed bytes that a lone miss fetches: a 10 Mbit link needs 25 ms for them, about one round trip."""
LARGEST: Final = 16 << 20
MOST_PIECES: Final = 4096
"""Chunks in a run, unless one member has more. Each is claimed, and a claim costs the kernel more the more there are: 35 µs
with this many, 300 µs with 20,000.
"""
_GAP: Final = 128 << 10
"""A miss at most this far behind the end of a walk still belongs to it: readers skip small files, and chunks that are stored.
"""
_NEAR: Final = 16 << 10
"""The same in a crowd: among many readers, one easily comes close to another's walk by chance."""
_WALKS: Final = 16


class Window(NamedTuple):
    """What one miss may fetch, in compressed bytes."""

    inside: int
    """Within the same file, from the start of the wanted chunk."""
    across: int
    """Behind that, of the following files."""
    name: str
    """Name of the wanted content."""


class Windows:
    """The walks through one layer's blob."""

    def __init__(self) -> None:
        self._walks: dict[int, Window] = {}
        """By the offset where a walk continues: its last window. Oldest first."""

    def open(self, piece: Piece, *, crowded: bool) -> Window:
        """What a miss of `piece` may fetch. Takes the walk that it continues off the list. `crowded`: many others miss at the
        same time."""
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
        """`[start, end)` is being fetched, and a walk may continue at `end`. `same_file`: all of it belongs to the wanted file."""
        inside = max(window.inside, end - start) if same_file else window.inside
        self._walks.pop(end, None)
        self._walks[end] = window._replace(inside=inside)
        if len(self._walks) > _WALKS:
            del self._walks[next(iter(self._walks))]


def choose_run(layer: LayerBlob, piece: Piece, windows: Windows, flights: SourceFlights, *, crowded: bool) -> list[Piece]:
    """The run for a miss of `piece`, which comes first: the rest of its member, and what the window allows behind it."""
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
