"""Cuts a planned layer into gzip members.

A member begins where readers start: at each file's bytes, and at each chunk of a large file. So a file's header is at the end of
the member before, after that member's own bytes and padding, together with the headers of entries without bytes
(directories, links, empty files). More than 1 MiB of such headers begin another member, which bounds the memory of readers.

Small files go to the compressing threads in batches: a batch costs one hand-over, and its work (read, sha256, deflate) runs
without the GIL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from lazyfs.format.member import compress_member
from lazyfs.format.tar import ReadAt
from lazyfs.format.tar_header import header_bytes, padding
from lazyfs.layertar.batches import batches as in_batches
from lazyfs.layertar.content import read_content
from lazyfs.layertar.cut import Cut
from lazyfs.layertar.plan import Planned

BATCH: Final = 1 << 20
_BATCH_COUNT: Final = 256
_MAX_TAIL: Final = 1 << 20


class Piece(NamedTuple):
    """A member to be written: `size` bytes at `file_offset` of entry number `entry`, and the padding and headers after them."""

    entry: int
    file_offset: int
    size: int
    tail: bytes


class Packed(NamedTuple):
    """A batch of pieces, compressed."""

    pieces: Sequence[Piece]
    tar: bytes
    blob: bytes
    sizes: Sequence[int]
    """The size of each member in `blob`."""
    digests: Sequence[bytes]
    """sha256 of each piece's file bytes, raw."""


def members(plan: Sequence[Planned], cut: Cut, read_at: ReadAt) -> Iterator[Piece]:
    """The members of a layer, in order, without the TOC's. `cut` cuts its files, which `read_at` reads."""
    entry = file_offset = size = 0
    tail = bytearray()
    for number, planned in enumerate(plan):
        tail += header_bytes(planned.entry)
        whole = planned.entry.size
        if whole or len(tail) > _MAX_TAIL:
            yield Piece(entry, file_offset, size, bytes(tail))
            tail.clear()
            size = 0
        if not whole:
            continue
        entry = number
        for span in cut(planned, read_at):
            if size:
                yield Piece(entry, file_offset, size, b"")
            file_offset, size = span
        tail += bytes(padding(whole))
    if tail or size:
        yield Piece(entry, file_offset, size, bytes(tail))


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Consecutive pieces for one thread: up to 1 MiB, or a single larger one."""
    return in_batches(pieces, lambda piece: piece.size + len(piece.tail), weight=BATCH, count=_BATCH_COUNT)


def compress(pieces: Sequence[Piece], plan: Sequence[Planned], read_at: ReadAt, level: int) -> Packed:
    """Read, hash and compress `pieces`. Runs in a thread."""
    tar = []
    blob = []
    digests = []
    for piece in pieces:
        content = read_content(plan[piece.entry], piece.file_offset, piece.size, read_at) if piece.size else b""
        digests.append(hashlib.sha256(content).digest())
        data = content + piece.tail
        tar.append(data)
        blob.append(compress_member(data, level))
    return Packed(pieces, b"".join(tar), b"".join(blob), [len(member) for member in blob], digests)
