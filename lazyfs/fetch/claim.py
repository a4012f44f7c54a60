"""What of a run has to be fetched, and by us: not what arrived meanwhile, lies in another file, or is another process's business."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
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
        for piece in sorted(pieces, key=lambda piece: (piece.chunk.member, piece.chunk.inner)):
            digest = piece.chunk.digest
            if digest not in claimed and store.claim(digest):
                unclaim.callback(store.release, digest)
                claimed[digest] = piece
        # Looked for once, when claimed: whoever held the claim before may have kept the chunk until then.
        needed = to_fetch(store, list(claimed.values()))
        if not gaps:
            needed = needed[: _first_gap(needed)]
        digests = {piece.chunk.digest for piece in needed}
        if wanted is not None and wanted.chunk.digest not in digests:
            return []
        unclaim.pop_all()
    for digest in claimed.keys() - digests:
        store.release(digest)
    return needed


def missing_of(store: Store, pieces: Sequence[Piece]) -> list[Piece]:
    """Blocking. Those of `pieces` that are not in the store."""
    absent = store.missing_many([piece.content for piece in pieces])
    return [piece for piece, numbers in zip(pieces, absent, strict=True) if piece.number in numbers]


def to_fetch(store: Store, pieces: Sequence[Piece]) -> list[Piece]:
    """Blocking. Those of `pieces` that are not in the store, and could not be taken from another file of it."""
    missing = missing_of(store, pieces)
    elsewhere = store.held_anywhere([piece.chunk.digest for piece in missing])
    return [piece for piece in missing if piece.chunk.digest not in elsewhere or not _copied(store, piece)]


def _first_gap(pieces: Sequence[Piece]) -> int:
    """How many of `pieces`, which stand in blob order, no more than BRIDGE lies between."""
    for number, (before, piece) in enumerate(pairwise(pieces), 1):
        if piece.chunk.member > before.chunk.member_end + BRIDGE:
            return number
    return len(pieces)


def _copied(store: Store, piece: Piece) -> bool:
    try:
        return store.copy_local(piece.content, piece.number)
    except LocalError:
        return False  # no room for a copy: fetched, it can at least be read
