"""Where everything lies in a layer's blob: its chunks as pieces, in the blob's own order.

The fetcher thinks in the order of the blob, not of the tree: what lies side by side there comes in one range.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple, Self

from lazyfs.format.dialect import Dialect
from lazyfs.format.digest import Digest
from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.estargz import ESTARGZ
from lazyfs.image.layer import Layer
from lazyfs.store.content import Content, content_of


class Piece(NamedTuple):
    """One chunk of one file, as the fetcher handles it."""

    content: Content
    number: int
    """Which of the content's chunks."""
    chunk: Chunk


def pieces_of(entry: Entry) -> tuple[Piece, ...]:
    """A file's chunks, in order; empty for what has no bytes."""
    if not entry.chunks:
        return ()
    content = content_of(entry.chunks)
    return tuple(Piece(content, number, chunk) for number, chunk in enumerate(entry.chunks))


class LayerBlob:
    """A layer's blob and what is in it. Immutable once made."""

    def __init__(self, digest: Digest, size: int, data_end: int, entries: Iterable[Entry], dialect: Dialect = ESTARGZ) -> None:
        """`data_end` is where the chunks end; `entries` those of the TOC. Costs about 5 µs a file."""
        self.digest = digest
        self.size = size
        self.whole: Layer | None = None
        """Where the layer is not lazy, the layer without its entries: pieces have no place in its blob then, and a reader of one fetches all of it."""
        self.data_end = data_end
        self.dialect = dialect
        pieces: list[Piece] = []
        for entry in entries:
            pieces.extend(pieces_of(entry))
        pieces.sort(key=lambda piece: (piece.chunk.member, piece.chunk.inner))
        self.pieces = tuple(pieces)
        self.total = sum(piece.chunk.size for piece in pieces)
        """Bytes of all files, equal ones as often as they are there."""
        self._members = [piece.chunk.member for piece in pieces]

    @classmethod
    def of(cls, layer: Layer) -> Self:
        """The pieces of a layer that has been loaded."""
        made = cls(layer.digest, layer.descriptor.size, layer.toc_offset, layer.entries, layer.dialect)
        made.whole = layer.without_entries() if layer.whole else None
        return made

    def position(self, offset: int) -> int:
        """Index of the first piece at or behind blob offset `offset`."""
        return bisect_left(self._members, offset)
