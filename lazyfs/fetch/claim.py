"""What of a run has to be fetched, and by us: not what arrived meanwhile, lies in another file, or is another process's business."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Final, NamedTuple

from lazyfs.errors import LocalError
from lazyfs.fetch.piece import Piece
from lazyfs.store.store import Store

BRIDGE: Final = 16 << 10
"""A run passes over so many bytes that are here already: files that an image holds twice lie strewn everywhere (in the
python image 275 requests without this, 98 with it and 0.5 % of the bytes read over), and a request costs more."""

_COPIED: Final = 64 << 20
"""Bytes that are copied inside of the store before a run goes on its way."""


class ClaimRequest(NamedTuple):
    """What a run would fetch."""

    pieces: tuple[Piece, ...]
    wanted: Piece | None
    """When this one need not be fetched, none is."""
    gaps: bool
    """Without them the run ends where more than BRIDGE lies between that is here, or on its way, already: it would be downloaded twice."""
    ignore_claim: bool = False
    """`wanted` is taken although another process has claimed it. That costs a second download at worst: both keep the same bytes."""


def claim_missing(store: Store, request: ClaimRequest) -> list[Piece]:
    """Blocking. Those of the pieces that must be fetched, claimed for us, in blob request, each chunk once. Whoever gets them releases them.

    Of what lies in another file, some is copied and the rest left for the next time, so that this ends soon.
    """
    with ExitStack() as unclaim:
        # Not all pieces of a long run: 5,000 locks on one file cost the kernel 0.1 s.
        missing = missing_of(store, request.pieces)
        claimed = _claim(store, request, missing, unclaim)
        ours = {piece.chunk.digest for piece in claimed}
        # Whoever held a claim before may have kept the chunk since we looked.
        needed = _copy_some(store, [piece for piece in missing if piece.chunk.digest in ours], request.wanted)
        taken = _still_needed(request, [piece for piece in claimed if piece.chunk.digest in needed])
        unclaim.pop_all()
    _release_others(store, claimed, taken)
    return taken


def claim_together(store: Store, requests: Sequence[ClaimRequest]) -> list[list[Piece] | None]:
    """Blocking, but only for the index: `claim_missing` for several, in two queries. None for one that takes longer, because some of
    it lies in another file and wants to be copied: nothing is claimed for it.
    """
    answers: list[list[Piece] | None] = []
    with ExitStack() as unclaim:
        claimed = [_claim(store, request, request.pieces, unclaim) for request in requests]
        # Looked for once, when claimed: these are few, and usually missing.
        missing = {piece.chunk.digest for piece in missing_of(store, [piece for pieces in claimed for piece in pieces])}
        elsewhere = store.held_anywhere(list(missing))
        for request, pieces in zip(requests, claimed, strict=True):
            needed = [piece for piece in pieces if piece.chunk.digest in missing]
            copied = any(piece.chunk.digest in elsewhere for piece in needed)
            answers.append(None if copied else _still_needed(request, needed))
        unclaim.pop_all()
    for pieces, answer in zip(claimed, answers, strict=True):
        _release_others(store, pieces, answer or ())
    return answers


def missing_of(store: Store, pieces: Sequence[Piece]) -> list[Piece]:
    """Blocking. Those of `pieces` that are not in the store."""
    absent = store.lacking([(piece.content, piece.number) for piece in pieces])
    return [piece for piece, missing in zip(pieces, absent, strict=True) if missing]


def to_fetch(store: Store, pieces: Sequence[Piece]) -> list[Piece]:
    """Blocking. Those of `pieces` that are not in the store, and could not be taken from another file of it."""
    missing = missing_of(store, pieces)
    elsewhere = store.held_anywhere([piece.chunk.digest for piece in missing])
    return [piece for piece in missing if piece.chunk.digest not in elsewhere or not _copy(store, piece)]


def _copy_some(store: Store, pieces: Sequence[Piece], first: Piece | None) -> set[bytes]:
    """Copy what can be copied, up to a bound, `first` before all others; the digests of the chunks that cannot be."""
    missing = missing_of(store, pieces)
    elsewhere = store.held_anywhere(list({piece.chunk.digest for piece in missing}))
    needed: set[bytes] = set()
    size = 0
    for piece in sorted(missing, key=lambda piece: piece != first):
        digest = piece.chunk.digest
        if digest not in elsewhere:
            needed.add(digest)
        elif size < _COPIED and digest not in needed:
            if _copy(store, piece):
                size += piece.chunk.size
            else:
                needed.add(digest)
    return needed


def _claim(store: Store, request: ClaimRequest, pieces: Sequence[Piece], unclaim: ExitStack) -> list[Piece]:
    """Those that no other process is bringing, once each, in blob request."""
    claimed: dict[bytes, Piece] = {}
    insisted = request.wanted.chunk.digest if request.wanted is not None and request.ignore_claim else None
    for piece in sorted(pieces, key=lambda piece: (piece.chunk.member, piece.chunk.inner)):
        digest = piece.chunk.digest
        if digest not in claimed and (store.claim(digest) or digest == insisted):
            unclaim.callback(store.release, digest)
            claimed[digest] = piece
    return list(claimed.values())


def _still_needed(request: ClaimRequest, needed: list[Piece]) -> list[Piece]:
    if not request.gaps:
        needed = needed[: _first_gap(needed)]
    if request.wanted is not None and request.wanted.chunk.digest not in {piece.chunk.digest for piece in needed}:
        return []
    return needed


def _release_others(store: Store, claimed: Sequence[Piece], taken: Sequence[Piece]) -> None:
    digests = {piece.chunk.digest for piece in taken}
    for piece in claimed:
        if piece.chunk.digest not in digests:
            store.release(piece.chunk.digest)


def _first_gap(pieces: Sequence[Piece]) -> int:
    """How many of `pieces`, which stand in blob request, no more than BRIDGE lies between."""
    for number, (before, piece) in enumerate(pairwise(pieces), 1):
        if piece.chunk.member > before.chunk.member_end + BRIDGE:
            return number
    return len(pieces)


def _copy(store: Store, piece: Piece) -> bool:
    try:
        return store.copy_local(piece.content, piece.number)
    except LocalError:
        return False  # no room for a copy: fetched, it can at least be read
