"""What of a run has to be fetched, and by us: not what arrived meanwhile, lies in another file, or is another process's business."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from lazyfs.errors import LocalError
from lazyfs.fetch.piece import Piece
from lazyfs.store.store import Store

BRIDGE: Final = 16 << 10
"""A run passes over so many bytes that are here already: files that an image holds twice lie strewn everywhere (in the
python image 275 requests without this, 98 with it and 0.5 % of the bytes read over), and a request costs more."""


def claim_missing(store: Store, pieces: Sequence[Piece], wanted: Piece | None, gaps: bool) -> list[Piece]:
    """Blocking. Those of `pieces` that must be fetched, claimed for us, in blob order. Whoever gets them releases them.

    `wanted`: when this one need not be fetched, none is. Without `gaps` the list ends where more than BRIDGE lies between
    that is here, or on its way, already: it would be downloaded twice.
    """
    claimed: dict[bytes, Piece] = {}
    with ExitStack() as unclaim:
        end = -1
        for piece in sorted(pieces, key=lambda piece: (piece.chunk.member, piece.chunk.inner)):
            chunk = piece.chunk
            if chunk.digest in claimed or not is_missing(store, piece) or not store.claim(chunk.digest):
                continue
            unclaim.callback(store.release, chunk.digest)
            # Whoever held the claim before may have kept the chunk since we looked.
            needed = is_missing(store, piece) and not copied(store, piece)
            if needed and (gaps or end < 0 or chunk.member <= end + BRIDGE):
                claimed[chunk.digest] = piece
                end = chunk.member_end
                continue
            store.release(chunk.digest)
            if needed:
                break
        if wanted is not None and wanted.chunk.digest not in claimed:
            return []
        unclaim.pop_all()
    return list(claimed.values())


def copied(store: Store, piece: Piece) -> bool:
    """Blocking. Whether the piece could be taken from another file of the store."""
    try:
        return store.copy_local(piece.content, piece.number)
    except LocalError:
        return False  # no room for a copy: fetched, it can at least be read


def is_missing(store: Store, piece: Piece) -> bool:
    """Blocking. Whether the piece is not in the store."""
    return bool(store.missing(piece.content, piece.number, piece.number + 1))
