"""Tasks that nobody waits for: none of them ends what they live in."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import StoreFull
from lazyfs.tasks import Guarded, keep_running

FAILURES = [
    OSError(errno.EMFILE, "Too many open files"),
    StoreFull("no room"),
    ExceptionGroup("of a nursery", [OSError(errno.ENOSPC, "No space left on device")]),
    ZeroDivisionError("a bug"),
]


class Failing:
    """Fails a few times, then goes on until cancelled."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.began: list[float] = []
        self.runs = trio.Event()

    async def run(self) -> None:
        self.began.append(trio.current_time())
        if self._failures:
            raise self._failures.pop(0)
        self.runs.set()
        await trio.sleep_forever()


async def test_failing_task_is_run_again(autojump_clock: MockClock, expect_log: Callable[[str], None]) -> None:
    """After a pause that grows; each failure is a line of the log, a bug with its traceback."""
    for text in ("Too many open files", "no room", "No space left", "a bug"):
        expect_log(f"the sweep has failed and is tried again.*{text}")
    failing = Failing(*FAILURES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_running, "the sweep", failing.run)
        await failing.runs.wait()
        nursery.cancel_scope.cancel()
    began = [at - failing.began[0] for at in failing.began]
    assert began == pytest.approx([0, 1, 3, 7, 15])


async def test_returning_is_no_failure() -> None:
    """A task that is done is done."""
    await keep_running("nothing", trio.lowlevel.checkpoint)


@pytest.mark.parametrize("failure", FAILURES)
async def test_failing_task_ends_no_other(failure: Exception, expect_log: Callable[[str], None]) -> None:
    """It is logged, and the nursery lives."""
    expect_log("Failing.run has ended")
    async with trio.open_nursery() as nursery:
        tasks = Guarded(nursery)
        tasks.start_soon(Failing(failure).run)
        other = Failing()
        tasks.start_soon(other.run)
        await other.runs.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_cancelled_among_failures(expect_log: Callable[[str], None]) -> None:
    """What fails while it is cancelled fails nobody else."""
    expect_log("late")

    async def fail_late() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise OSError(errno.EIO, "late")

    with trio.move_on_after(0.01) as scope:
        await keep_running("it", fail_late)
    assert scope.cancelled_caught
