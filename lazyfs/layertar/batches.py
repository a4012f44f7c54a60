"""Batches of small jobs for threads: handing one over costs more than a small file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], weigh: Callable[[T], int], *, weight: int, count: int) -> Iterator[list[T]]:
    """Consecutive items, up to `weight` and `count` in a batch; a heavier item is alone in one."""
    batch: list[T] = []
    total = 0
    for item in items:
        more = weigh(item)
        if batch and (total + more > weight or len(batch) == count):
            yield batch
            batch = []
            total = 0
        batch.append(item)
        total += more
    if batch:
        yield batch
