"""Processes and those that descend from them, as the kernel lists them."""

from __future__ import annotations

import os
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
