"""The sums that a chunk is read back with: xxh3 of every 64 KiB block.

sha256 is paid once, when bytes arrive from elsewhere. What our own disk gives back is checked against damage, not
malice, and xxh3 does that at ten times sha256's speed. The seed is taken from the chunk's sha256 digest, so the sums of
one chunk never pass for another's: a damaged row of the index, which joins a digest to sums, fails the check as well.
"""

from __future__ import annotations

import os

import xxhash

BLOCK = 64 * 1024
SUM_SIZE = 8

_WINDOW = 16 * BLOCK
"""Read at a time while checking, so that a chunk of a gigabyte does not cost a gigabyte of memory."""


def sums_of(data: bytes | memoryview, digest: bytes) -> bytes:
    """8 bytes for each block of `data`, which is a chunk, or whole blocks of one, under `digest`."""
    seed = int.from_bytes(digest[:8], "little")
    if len(data) <= BLOCK:
        return xxhash.xxh3_64_digest(data, seed)
    view = memoryview(data)
    return b"".join(xxhash.xxh3_64_digest(view[at : at + BLOCK], seed) for at in range(0, len(view), BLOCK))


def read_checked(fd: int, offset: int, size: int, digest: bytes, sums: bytes, start: int, length: int) -> bytes | None:
    """Bytes [start, start + length) of the chunk of `size` bytes at `offset` of a file; None unless all its blocks match.

    The bytes returned are those that were checked, not read a second time.
    """
    if len(sums) != -(-size // BLOCK) * SUM_SIZE:
        return None
    pieces: list[bytes] = []
    for at in range(0, size, _WINDOW):
        wanted = min(_WINDOW, size - at)
        try:
            window = os.pread(fd, wanted, offset + at)
        except OSError:  # a bad sector is damage like any other
            return None
        first = at // BLOCK * SUM_SIZE
        if len(window) != wanted or sums_of(window, digest) != sums[first : first + -(-wanted // BLOCK) * SUM_SIZE]:
            return None
        low, high = max(start, at), min(start + length, at + wanted)
        if low < high:
            pieces.append(window[low - at : high - at])
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
