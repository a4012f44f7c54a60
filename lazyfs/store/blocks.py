"""The sums that a chunk is read back with: xxh3 of every 64 KiB block.

sha256 is paid once, when bytes arrive from elsewhere. What our own disk gives back is checked against damage, not
malice, and xxh3 does that at ten times sha256's speed. The seed is taken from the chunk's sha256 digest, so the sums of
one chunk never pass for another's: a damaged row of the index, which joins a digest to sums, fails the check as well.
"""

from __future__ import annotations

import os
import threading

import xxhash

BLOCK = 64 * 1024
SUM_SIZE = 8

_WINDOW = 4 * BLOCK
"""Read at a time where bytes are only checked: it stays in the processor's cache."""


def sums_of(data: bytes | memoryview, digest: bytes) -> bytes:
    """8 bytes for each block of `data`, which is a chunk, or whole blocks of one, under `digest`."""
    seed = int.from_bytes(digest[:8], "little")
    if len(data) <= BLOCK:
        return xxhash.xxh3_64_digest(data, seed)
    view = memoryview(data)
    return b"".join(xxhash.xxh3_64_digest(view[at : at + BLOCK], seed) for at in range(0, len(view), BLOCK))


class _Scratch(threading.local):
    """What a thread checks with and gives to nobody: memory touched once, not fresh pages for every window."""

    def __init__(self) -> None:
        self.window = memoryview(bytearray(_WINDOW))


_scratch = _Scratch()


def read_checked(fd: int, offset: int, size: int, digest: bytes, sums: bytes, start: int, length: int) -> bytes | None:
    """Bytes [start, start + length) of the chunk of `size` bytes at `offset` of a file; None unless all its blocks match.

    The bytes returned are those that were checked, not read a second time. Of the others no more than a window is held at once.
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
    """Whether `data`, whole blocks from `at` of the chunk on, has the sums that it should."""
    first = at // BLOCK * SUM_SIZE
    return not data or sums_of(data, digest) == sums[first : first + -(-len(data) // BLOCK) * SUM_SIZE]
