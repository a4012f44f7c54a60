"""Checksums for reading a chunk back: xxh3 of every 64 KiB block.

sha256 is paid once, when bytes arrive from a source. What the local disk returns is checked for damage, not for malice, and
xxh3 does that at ten times the speed of sha256. The seed comes from the chunk's sha256 digest, so the checksums of one chunk
never match another: a damaged row of the index, which ties a digest to checksums, fails the check as well.
"""

from __future__ import annotations

import os
import threading

import xxhash

BLOCK = 64 * 1024
SUM_SIZE = 8

_WINDOW = 4 * BLOCK
"""Bytes read at a time where bytes are only checked: the window stays in the processor's cache."""


def sums_of(data: bytes | memoryview, digest: bytes) -> bytes:
    """8 bytes for each block of `data`. `data` is the chunk with this digest, or whole blocks of it."""
    seed = int.from_bytes(digest[:8], "little")
    if len(data) <= BLOCK:
        return xxhash.xxh3_64_digest(data, seed)
    view = memoryview(data)
    return b"".join(xxhash.xxh3_64_digest(view[at : at + BLOCK], seed) for at in range(0, len(view), BLOCK))


class _Scratch(threading.local):
    """A buffer of each thread for bytes that are only checked: its pages are touched once, instead of fresh ones for every
    window."""

    def __init__(self) -> None:
        self.window = memoryview(bytearray(_WINDOW))


_scratch = _Scratch()


def read_checked(fd: int, offset: int, size: int, digest: bytes, sums: bytes, start: int, length: int) -> bytes | None:
    """Read bytes [start, start + length) of the chunk of `size` bytes at `offset` of a file. None unless all blocks of the
    chunk match.

    The returned bytes are the ones that were checked; they are not read twice. Of the others, at most one window is held at a
    time.
    """
    if len(sums) != -(-size // BLOCK) * SUM_SIZE:
        return None
    low, high = start // BLOCK * BLOCK, min(-(-(start + length) // BLOCK) * BLOCK, size)
    try:
        wanted = os.pread(fd, high - low, offset + low)
        if len(wanted) != high - low or not _matches(wanted, low, digest, sums):
            return None
        for first, last in ((0, low), (high, size)):
            for at in range(first, last, _WINDOW):
                window = _scratch.window[: min(_WINDOW, last - at)]
                if os.preadv(fd, [window], offset + at) != len(window) or not _matches(window, at, digest, sums):
                    return None
    except OSError:  # a bad sector is damage like any other
        return None
    return wanted[start - low : start - low + length]


def _matches(data: bytes | memoryview, at: int, digest: bytes, sums: bytes) -> bool:
    """Whether `data` has the right checksums. It consists of whole blocks, and begins at byte `at` of the chunk."""
    first = at // BLOCK * SUM_SIZE
    return not data or sums_of(data, digest) == sums[first : first + -(-len(data) // BLOCK) * SUM_SIZE]
