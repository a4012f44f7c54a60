"""Cutting a layer into gzip members."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from converter.members import BATCH, Piece, batches, compress, members
from lazyfs.format.entry import Entry
from lazyfs.format.sparse import Extent
from lazyfs.format.tar_header import header_bytes, padding
from lazyfs.layertar.content import read_content
from lazyfs.layertar.cut import every
from lazyfs.layertar.plan import Planned

SIZES = st.lists(st.one_of(st.just(0), st.integers(1, 40)), max_size=8)


def plan_of(sizes: Sequence[int]) -> tuple[list[Planned], bytes]:
    """Files of these sizes, and the bytes that they lie in."""
    plan = []
    store = b""
    for number, size in enumerate(sizes):
        plan.append(Planned(Entry(b"f%d" % number, "reg", size=size), (Extent(0, len(store), size),) if size else ()))
        store += bytes((number + at) % 251 for at in range(size))
    return plan, store


def unread(_at: int, _size: int) -> bytes:
    """Where a file is cut depends on its size alone."""
    raise AssertionError


@given(SIZES, st.integers(1, 50))
def test_the_pieces_are_the_tar(sizes: list[int], chunk_size: int) -> None:
    """One after the other they are the headers, contents and padding, and each holds at most one chunk, at its beginning."""
    plan, store = plan_of(sizes)
    tar = b""
    for piece in members(plan, every(chunk_size), lambda at, size: store[at : at + size]):
        assert piece.size <= chunk_size
        assert not piece.file_offset % chunk_size
        tar += (
            read_content(plan[piece.entry], piece.file_offset, piece.size, lambda at, size: store[at : at + size])
            if piece.size
            else b""
        )
        tar += piece.tail
    assert tar == b"".join(
        header_bytes(planned.entry)
        + store[planned.extents[0].tar_offset :][: planned.entry.size]
        + bytes(padding(planned.entry.size))
        if planned.extents
        else header_bytes(planned.entry)
        for planned in plan
    )


def test_a_member_begins_at_each_chunk_and_nowhere_else() -> None:
    """Headers belong to the member before; the first member is headers alone."""
    plan, _ = plan_of([0, 12, 0, 3])
    header = len(header_bytes(plan[0].entry))
    assert [(piece.entry, piece.file_offset, piece.size, len(piece.tail)) for piece in members(plan, every(5), unread)] == [
        (0, 0, 0, 2 * header),
        (1, 0, 5, 0),
        (1, 5, 5, 0),
        (1, 10, 2, padding(12) + 2 * header),
        (3, 0, 3, padding(3)),
    ]


def test_a_long_run_of_headers_is_cut() -> None:
    """Nobody has to hold more than about a MiB of what is not a file's bytes."""
    plan = [Planned(Entry(b"d%d" % number, "dir")) for number in range(5000)]
    pieces = list(members(plan, every(5), unread))
    assert len(pieces) == 3
    assert sum(len(piece.tail) for piece in pieces) == 5000 * 512
    assert all(len(piece.tail) <= (1 << 20) + 512 for piece in pieces)


@given(st.lists(st.integers(0, 3 * BATCH), max_size=8))
def test_batches_keep_order_and_bounds(sizes: list[int]) -> None:
    """Everything once, and no batch over the bound but of one piece."""
    pieces = [Piece(number, 0, size, b"") for number, size in enumerate(sizes)]
    found = list(batches(pieces))
    assert [piece for batch in found for piece in batch] == pieces
    assert all(len(batch) == 1 or sum(piece.size for piece in batch) <= BATCH for batch in found)


def test_what_a_thread_returns() -> None:
    """Members that inflate to the tar, their sizes, and a digest of the file's bytes only."""
    plan, store = plan_of([3, 7])
    pieces = list(members(plan, every(100), unread))
    packed = compress(pieces, plan, lambda at, size: store[at : at + size], 6)
    assert gzip.decompress(packed.blob) == packed.tar
    assert sum(packed.sizes) == len(packed.blob)
    offset = packed.sizes[0]
    assert gzip.decompress(packed.blob[offset : offset + packed.sizes[1]]).startswith(store[:3])
    assert packed.digests == [hashlib.sha256(part).digest() for part in (b"", store[:3], store[3:])]
