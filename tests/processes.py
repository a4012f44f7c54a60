"""Processes and those that descend from them, as the kernel lists them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in found:
            yield from tree(int(child))


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal has been sent to a process that it has not taken yet."""
    pending = re.findall(r"^S(?:ig|hd)Pnd:\t([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in pending)


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """None of them does anything inside the block."""
    them = tuple(pids)
    try:
        _signal(them, signal.SIGSTOP)
        yield
    finally:
        _signal(them, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
