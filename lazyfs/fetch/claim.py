"""Decides which pieces of a run this process has to fetch: not those that have arrived, that another file of the store has, or
that another process has claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Final, NamedTuple

from lazyfs.errors import LocalError
from lazyfs.fetch.piece import Piece
from lazyfs.store.store import Store

BRIDGE: Final = 16 << 10
"""A run reads over gaps of stored chunks up to this size. Files that an image holds twice are scattered everywhere (the python
image takes 275 requests without this, and 98 with it and 0.5 % more bytes), and a request costs more.
"""

_COPIED: Final = 64 << 20
"""Bytes copied within the store before a run starts."""


class ClaimRequest(NamedTuple):
    """What a run would fetch."""

    pieces: tuple[Piece, ...]
    wanted: Piece | None
    """If this one need not be fetched, nothing is."""
    gaps: bool
    """False: the run ends at the first gap of more than BRIDGE that is stored or in flight, because it would be downloaded
    twice."""
    ignore_claim: bool = False
    """Fetch `wanted` even if another process has claimed it. At worst, it is downloaded twice: both keep the same bytes."""


def claim_missing(store: Store, request: ClaimRequest) -> list[Piece]:
    """The pieces that must be fetched, claimed for this process, in blob order, each chunk once. The caller releases them.
    Blocking.

    Copies chunks from other files up to a bound, and leaves the rest for the next time, so that this ends soon.
    """
    with ExitStack() as unclaim:
        # Not all pieces of a long run: 5,000 locks on one file cost the kernel 0.1 s.
        missing = missing_of(store, request.pieces)
        claimed = _claim(store, request, missing, unclaim)
        ours = {piece.chunk.digest for piece in claimed}
        # A previous holder of a claim may have kept the chunk since the last look.
        needed = _copy_some(store, [piece for piece in missing if piece.chunk.digest in ours], request.wanted)
        taken = _still_needed(request, [piece for piece in claimed if piece.chunk.digest in needed])
        unclaim.pop_all()
    _release_others(store, claimed, taken)
    return taken


def claim_together(store: Store, requests: Sequence[ClaimRequest]) -> list[list[Piece] | None]:
    """`claim_missing` for several runs in two queries. None, and nothing claimed, for a run that takes longer because chunks
    have to be copied from another file. Blocking, but only for the index."""
    answers: list[list[Piece] | None] = []
    with ExitStack() as unclaim:
        claimed = [_claim(store, request, request.pieces, unclaim) for request in requests]
        # Looked up once, after claiming: there are few, and they are usually missing.
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
    """Those of `pieces` that are not in the store. Blocking."""
    absent = store.lacking([(piece.content, piece.number) for piece in pieces])
    return [piece for piece, missing in zip(pieces, absent, strict=True) if missing]


def to_fetch(store: Store, pieces: Sequence[Piece]) -> list[Piece]:
    """Those of `pieces` that are not in the store and cannot be copied from another file of it. Blocking."""
    missing = missing_of(store, pieces)
    elsewhere = store.held_anywhere([piece.chunk.digest for piece in missing])
    return [piece for piece in missing if piece.chunk.digest not in elsewhere or not _copy(store, piece)]


def _copy_some(store: Store, pieces: Sequence[Piece], first: Piece | None) -> set[bytes]:
    """Copy what can be copied, up to a bound, `first` first. Returns the digests of the chunks that cannot be copied."""
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
    """Those that no other process is fetching, each once, in blob order."""
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
    """The number of leading `pieces`, which are in blob order, without a gap of more than BRIDGE."""
    for number, (before, piece) in enumerate(pairwise(pieces), 1):
        if piece.chunk.member > before.chunk.member_end + BRIDGE:
            return number
    return len(pieces)


def _copy(store: Store, piece: Piece) -> bool:
    try:
        return store.copy_local(piece.content, piece.number)
    except LocalError:
        return False  # no room for a copy; once fetched, it can at least be read
