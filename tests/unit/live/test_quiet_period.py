"""The quiet period of containerd, in virtual time."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from lazyfs.live.quiet_period import QuietPeriod


async def test_no_wait_without_requests(autojump_clock: MockClock) -> None:
    """As after a restart."""
    await QuietPeriod().wait()
    assert trio.current_time() == 0


async def test_each_question_puts_it_off(autojump_clock: MockClock) -> None:
    """It comes a second after the last request."""
    quiet_period = QuietPeriod()

    async def ask() -> None:
        for _ in range(5):
            quiet_period.note_request()
            await trio.sleep(0.7)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await quiet_period.wait()
        assert trio.current_time() == 4 * 0.7 + 1


async def test_a_machine_that_never_rests(autojump_clock: MockClock) -> None:
    """Half a minute is the maximum."""
    quiet_period = QuietPeriod()

    async def ask() -> None:
        while True:
            quiet_period.note_request()
            await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await quiet_period.wait()
        assert trio.current_time() == 30
        nursery.cancel_scope.cancel()
