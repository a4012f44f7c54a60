"""Layers, a few at a time."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.layertar.in_order import run_in_order


async def test_they_begin_in_order_and_a_few_at_a_time() -> None:
    """The next begins when any of those that run has ended; all have run at the end."""
    ends = [trio.Event() for _ in range(5)]
    begun: list[int] = []

    async def job(number: int) -> None:
        begun.append(number)
        await ends[number].wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_order, [partial(job, number) for number in range(5)], 2)
        await wait_all_tasks_blocked()
        assert begun == [0, 1]
        ends[1].set()
        await wait_all_tasks_blocked()
        assert begun == [0, 1, 2]
        for end in ends:
            end.set()
    assert begun == [0, 1, 2, 3, 4]


async def test_one_that_fails_ends_all() -> None:
    """Those that run are cancelled, and no other begins."""
    begun: list[int] = []

    async def job(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ValueError
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup):
        await run_in_order([partial(job, number) for number in range(5)], 2)
    assert sorted(begun) == [0, 1]
