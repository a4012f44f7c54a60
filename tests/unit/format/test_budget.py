"""The parsing budget: shared, first come first served, and one layer always fits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio
import trio.testing

from lazyfs.errors import InvalidToc
from lazyfs.format.budget import Budget, parsing_budget
from lazyfs.format.platform import Platform
from lazyfs.image.image import all_of, resolve_image
from lazyfs.image.layer import load_layer
from tests.unit.image.memory import MemorySource, make_blob


class Holder:
    """One who holds room until it is let go."""

    def __init__(self, budget: Budget, size: int) -> None:
        self.budget, self.size = budget, size
        self.held, self.go = trio.Event(), trio.Event()
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            async with self.budget.hold(self.size):
                self.held.set()
                await self.go.wait()


async def test_what_does_not_fit_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Two fit; the third comes when there is room, and the fourth, which would fit, does not pass it."""
    budget = Budget(100)
    holders = [Holder(budget, size) for size in (40, 60, 50, 10)]
    async with trio.open_nursery() as nursery:
        for holder in holders:
            nursery.start_soon(holder.run)
            await trio.testing.wait_all_tasks_blocked()
        assert [holder.held.is_set() for holder in holders] == [True, True, False, False]
        holders[0].go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [holder.held.is_set() for holder in holders] == [True, True, False, False]
        holders[1].go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert all(holder.held.is_set() for holder in holders)
        for holder in holders:
            holder.go.set()


async def test_one_always_fits(autojump_clock: trio.testing.MockClock) -> None:
    """What is larger than all room has it alone; the next waits for it."""
    budget = Budget(100)
    large, small = Holder(budget, 1000), Holder(budget, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(large.run)
        await large.held.wait()
        nursery.start_soon(small.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not small.held.is_set()
        large.go.set()
        await small.held.wait()
        small.go.set()


async def test_who_is_cancelled_holds_none(autojump_clock: trio.testing.MockClock) -> None:
    """While it waits, and at the moment when it is admitted: the next one gets the memory."""
    budget = Budget(100)
    first, waits, late, last = (Holder(budget, 100) for _ in range(4))
    async with trio.open_nursery() as nursery:
        for holder in (first, waits, late, last):
            nursery.start_soon(holder.run)
            await trio.testing.wait_all_tasks_blocked()
        waits.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        first.go.set()
        late.scope.cancel()  # its turn comes in the same moment
        await last.held.wait()
        last.go.set()
    async with budget.hold(100):
        pass


async def test_a_process_has_one_budget() -> None:
    """The budget is the same for every caller."""
    assert parsing_budget() is parsing_budget()


async def test_a_refusal_holds_nothing_of_what_was_parsed(tmp_path: Path) -> None:
    """An error that is kept keeps the frames that it came through, and they a hundred megabytes each: twenty refused images took 1.8 GB."""
    source = MemorySource()
    entries = [{"name": f"d{number}", "type": "dir"} for number in range(3000)]
    source.put_image(make_blob({"version": 1, "entries": [*entries, {"name": "/", "type": "no such"}]}))
    image = await resolve_image(source, "v1", Platform("linux", "amd64"), None)
    (error,) = await all_of([partial(load_layer, source, None, layer) for layer in image.layers])
    assert isinstance(error, InvalidToc)
    assert error.__traceback__ is error.__context__ is error.__cause__ is None
