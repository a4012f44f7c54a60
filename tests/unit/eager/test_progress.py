"""Reports of the progress of layers."""

from __future__ import annotations

import trio
import trio.testing

from lazyfs.eager.progress import Bars
from lazyfs.reports.steps import Note, Progress


async def test_what_moves_is_reported_a_few_times_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """Many steps are one report, and a bar that does not move is reported once."""
    reports: list[Note | Progress] = []

    async def notify(report: Note | Progress) -> None:
        reports.append(report)

    bars = Bars(notify)
    step = bars.begin("a", 100)
    bars.begin("b", 7)
    with trio.move_on_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bars.run)
            await trio.sleep(0.5)
            for _ in range(50):
                step(1)
            await trio.sleep(0.5)
            step(50)
            await trio.sleep_forever()
    await bars.report()
    assert reports == [
        Progress("a", 0, 100),
        Progress("b", 0, 7),
        Progress("a", 50, 100),
        Progress("a", 100, 100),
    ]
