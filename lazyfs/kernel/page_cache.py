"""How much of a file is in the page cache.

Source: cachestat(2), Linux 6.5; the same number on every architecture.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from lazyfs.kernel.libc import syscall

_CACHESTAT: Final = 451
_COUNTS: Final = struct.Struct("=5Q")  # cached, dirty, under writeback, evicted, recently evicted
_WHOLE: Final = struct.pack("=2Q", 0, 0)
"""The range from 0 to the end."""


def cached_pages(fd: int) -> int:
    """Pages of the file that are in the page cache. Raises OSError; ENOSYS if the kernel is too old."""
    counts = ctypes.create_string_buffer(_COUNTS.size)
    syscall(_CACHESTAT, fd, _WHOLE, ctypes.addressof(counts), 0)
    cached, *_ = _COUNTS.unpack(counts.raw)
    return int(cached)


def is_cached(fd: int) -> bool:
    """Whether any of the file is in memory; False if the kernel cannot say."""
    try:
        return cached_pages(fd) > 0
    except OSError:
        return False
