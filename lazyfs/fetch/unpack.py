"""From compressed bytes to stored chunks, in a worker thread.

All bytes from a registry pass through here. The dialect of the layer decodes them (format/dialect.py), and everything is
verified before it is stored or returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from lazyfs.errors import DigestMismatch, InvalidInput, LocalError
from lazyfs.fetch.piece import Piece
from lazyfs.format.dialect import Dialect
from lazyfs.format.digest import from_raw
from lazyfs.store.store import Store


class Unpacked(NamedTuple):
    """The result for one piece."""

    piece: Piece
    data: memoryview | None
    error: InvalidInput | None
    """Why it is not what the TOC says."""
    store_error: LocalError | None
    """Why a correct piece was not stored."""


class Packed(NamedTuple):
    """Pieces whose members are in `data`, which begins at blob offset `start`."""

    start: int
    data: bytes | bytearray | memoryview
    pieces: Sequence[Piece]
    what: str
    """Name of the layer, for errors."""
    dialect: Dialect
    """Dialect of the layer."""


def unpack_together(store: Store, packed: Sequence[Packed]) -> list[list[Unpacked]]:
    """`unpack` for several."""
    return [unpack(store, each) for each in packed]


def unpack(store: Store, packed: Packed) -> list[Unpacked]:
    """Decode, verify and keep the pieces.

    Blocking. A piece that fails affects no others, except those of the same broken member.
    """
    start, data, pieces, what, dialect = packed
    decode = dialect.decode
    view = memoryview(data)
    done: list[Unpacked] = []
    position = 0
    while position < len(pieces):
        member = pieces[position].chunk.member
        together = position + 1
        while together < len(pieces) and pieces[together].chunk.member == member:
            together += 1
        group = pieces[position:together]
        position = together
        length = max(piece.chunk.inner + piece.chunk.size for piece in group)
        end = max(piece.chunk.member_end for piece in group)
        try:
            inflated = memoryview(decode(view[member - start : end - start], length, f"{what} at offset {member}"))
        except InvalidInput as error:
            done.extend(Unpacked(piece, None, error, None) for piece in group)
        else:
            done.extend(_verify_and_keep(store, inflated, piece, what) for piece in group)
    return done


def _verify_and_keep(store: Store, inflated: memoryview, piece: Piece, what: str) -> Unpacked:
    chunk = piece.chunk
    data = inflated[chunk.inner : chunk.inner + chunk.size]
    got = hashlib.sha256(data).digest()
    if got != chunk.digest:
        message = (
            f"{what}: the chunk at offset {chunk.member}, of object {piece.content.name}, should hash to {from_raw(chunk.digest)}"
            f" but hashes to {from_raw(got)}"
        )
        return Unpacked(piece, None, DigestMismatch(message), None)
    try:
        store.keep(piece.content, piece.number, data)
    except LocalError as error:
        return Unpacked(piece, data, None, error)
    return Unpacked(piece, data, None, None)
