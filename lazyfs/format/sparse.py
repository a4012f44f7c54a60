"""Sparse files in a tar: four encodings of where the data of a file with holes goes.

Source: GNU tar manual, "Storing Sparse Files". The old GNU form keeps the map in the header (type `S`) and in continuation blocks;
PAX 0.0 repeats records; 0.1 puts the map into one record; 1.0 puts it in front of the data. All of them encode a
list of (offset in the file, length), in order, followed by the data of all pieces one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from lazyfs.errors import InvalidTar
from lazyfs.format.bounds import EXTENT, Bounds
from lazyfs.format.pax import parse_number
from lazyfs.format.tar_header import BLOCK, header_number

_MAX_PIECES: Final = 1 << 20
"""Pieces of one file: enough for 16 GiB in pieces of 16 KiB. Bounds the cost of a map."""


class Extent(NamedTuple):
    """`size` bytes at `file_offset` of a file, found at `tar_offset` of the tar. Bytes that no extent covers are zeros."""

    file_offset: int
    tar_offset: int
    size: int


Pieces = list[tuple[int, int]]


def parse_old_map(header: bytes, block_at: Callable[[int], bytes], offset: int, bounds: Bounds, what: str) -> tuple[Pieces, int]:
    """Old GNU: the pieces from an `S` header and the continuation blocks at `offset`; and the offset after them."""
    pieces = _old_pieces(header[386:482], what)
    extended = header[482]
    while extended:
        block = block_at(offset)
        offset += BLOCK
        more = _old_pieces(block[:504], what)
        bounds.describe(BLOCK + EXTENT * len(more))  # counts the block too: one without pieces may be followed by another
        pieces += more
        _bound(len(pieces), what)
        extended = block[504]
    return pieces, offset


def parse_records_map(records: list[tuple[bytes, bytes]], bounds: Bounds, what: str) -> Pieces:
    """PAX 0.0 and 0.1: the pieces given by the records of one extended header."""
    offsets: list[int] = []
    lengths: list[int] = []
    for key, value in records:
        if key == b"GNU.sparse.offset":
            bounds.describe(EXTENT)
            offsets.append(parse_number(value, what))
        elif key == b"GNU.sparse.numbytes":
            lengths.append(parse_number(value, what))
        elif key == b"GNU.sparse.map":
            bounds.describe(EXTENT // 2 * value.count(b","))
            numbers = [parse_number(number, what) for number in value.split(b",")] if value else []
            offsets, lengths = numbers[0::2], numbers[1::2]
    if len(offsets) != len(lengths):
        raise InvalidTar(f"{what}: the sparse map has {len(offsets)} offsets and {len(lengths)} lengths")
    return list(zip(offsets, lengths, strict=True))


def parse_data_map(block_at: Callable[[int], bytes], offset: int, bounds: Bounds, what: str) -> tuple[Pieces, int]:
    """PAX 1.0: the pieces from the decimal lines in front of the data; and the offset after them."""
    text = block_at(offset)
    offset += BLOCK
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        line, newline, rest = text.partition(b"\n")
        if not newline:
            if len(text) > BLOCK:
                raise InvalidTar(f"{what}: the sparse map is not a list of numbers")
            text += block_at(offset)
            offset += BLOCK
            continue
        numbers.append(parse_number(line, what))
        text = rest
        if len(numbers) == 1:
            _bound(numbers[0], what)
            bounds.describe(EXTENT * numbers[0])
            wanted = 1 + 2 * numbers[0]
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), offset


def place(pieces: Pieces, size: int, tar_offset: int, stored: int, what: str) -> tuple[Extent, ...]:
    """The extents of a file of `size` bytes whose data, `stored` bytes in all, is at `tar_offset`.

    Raises InvalidTar unless the pieces are in order, do not overlap, lie inside the file and match the length of the data.
    """
    extents = []
    reached = 0
    total = 0
    for offset, length in pieces:
        if offset < reached or offset + length > size:
            raise InvalidTar(f"{what}: the sparse map is out of order, overlaps, or leaves the file's {size} bytes")
        if length:
            extents.append(Extent(offset, tar_offset + total, length))
        reached = offset + length
        total += length
    if total != stored:
        raise InvalidTar(f"{what}: the sparse map describes {total} bytes of data, but there are {stored}")
    return tuple(extents)


def _old_pieces(table: bytes, what: str) -> Pieces:
    pieces = []
    for position in range(0, len(table), 24):
        if not table[position]:
            break
        pair = (header_number(table[position : position + 12], what), header_number(table[position + 12 : position + 24], what))
        pieces.append(pair)
    return pieces


def _bound(count: int, what: str) -> None:
    if count > _MAX_PIECES:
        raise InvalidTar(f"{what}: the sparse map has more than {_MAX_PIECES} pieces")
