"""Arenas, as glibc itself counts them."""

from __future__ import annotations

import ctypes
import sys

import pytest

from tests.commands import run

PROGRAM = """
import ctypes, sys, threading
from lazyfs.kernel.heap import share_arenas

if sys.argv[1] == "shared":
    share_arenas()
together = threading.Barrier(8)

def allocate():
    together.wait()
    kept.append(bytes(100_000))
    together.wait()

kept, threads = [], [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_share_two_arenas() -> None:
    """Eight threads that allocate at once get two arenas, where glibc by itself makes more."""
    counts = {how: run(sys.executable, "-c", PROGRAM, how).stdout.count(b"<heap nr=") for how in ("shared", "as they come")}
    assert counts["shared"] <= 2 < counts["as they come"]
