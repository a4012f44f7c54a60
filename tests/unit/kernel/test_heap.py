"""Freed memory goes back to the kernel, in a process of its own: the test's heap is anybody's."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import re
from pathlib import Path
from lazyfs.kernel.heap import trim_heap

def resident():
    return int(re.search(r"RssAnon:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = resident()
blocks = [bytes(4000) for _ in range(10_000)]
kept = blocks[::20]
del blocks
held = resident() - before
trim_heap()
print(held, resident() - before)
"""


def test_what_was_freed_between_blocks_in_use_is_given_back() -> None:
    """glibc would keep nearly all of 40 MB for the two that are in use."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    held, left = map(int, done.stdout.split())
    assert held > 30_000 and left < 10_000
