"""The chunks of a layer's blob, as pieces in blob order.

The fetcher works in blob order, not in the order of the tree: neighbours in the blob come in one range.
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
    """One chunk of one file."""

    content: Content
    number: int
    """Index of the chunk in the content."""
    chunk: Chunk


def pieces_of(entry: Entry) -> tuple[Piece, ...]:
    """The chunks of a file in order; empty if it has no bytes."""
    if not entry.chunks:
        return ()
    content = content_of(entry.chunks)
    return tuple(Piece(content, number, chunk) for number, chunk in enumerate(entry.chunks))


class LayerBlob:
    """A layer's blob and its pieces. Immutable."""

    def __init__(self, digest: Digest, size: int, data_end: int, entries: Iterable[Entry], dialect: Dialect = ESTARGZ) -> None:
        """`data_end` is the offset where the chunks end; `entries` are those of the TOC. Costs about 5 µs a file."""
        self.digest = digest
        self.size = size
        self.whole: Layer | None = None
        """For an eager layer, the layer without its entries. Then pieces have no offset in the blob, and reading one fetches
        all of it."""
        self.urls: tuple[str, ...] = ()
        """Where the blob may be besides its source."""
        self.data_end = data_end
        self.dialect = dialect
        pieces: list[Piece] = []
        for entry in entries:
            pieces.extend(pieces_of(entry))
        pieces.sort(key=lambda piece: (piece.chunk.member, piece.chunk.inner))
        self.pieces = tuple(pieces)
        self.total = sum(piece.chunk.size for piece in pieces)
        """Bytes of all files, equal ones counted each time."""
        self._members = [piece.chunk.member for piece in pieces]

    @classmethod
    def of(cls, layer: Layer) -> Self:
        """The pieces of a loaded layer."""
        made = cls(layer.digest, layer.descriptor.size, layer.toc_offset, layer.entries, layer.dialect)
        made.urls = layer.descriptor.urls
        made.whole = layer.without_entries() if layer.whole else None
        return made

    def position(self, offset: int) -> int:
        """Index of the first piece at or after blob offset `offset`."""
        return bisect_left(self._members, offset)
