"""Memory that was freed, given back to the kernel."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Blocking, a few milliseconds. glibc keeps what was freed between blocks that are in use: after a pull, that is 40 MB.

    Another C library than glibc does as it likes. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
