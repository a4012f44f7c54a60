"""Supervised tasks: none of them ends its nursery, and waiters are informed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import LazyfsError, StoreFull
from lazyfs.tasks import Failures, Supervisor
from tests.conftest import LogWatch

FAILURES = [
    OSError(errno.EMFILE, "Too many open files"),
    StoreFull("no room"),
    ExceptionGroup("of a nursery", [OSError(errno.ENOSPC, "No space left on device")]),
    ZeroDivisionError("a bug"),
    MemoryError("no memory"),
]


class Failing:
    """Fails a few times, then runs until cancelled."""

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


async def test_failing_task_is_run_again(autojump_clock: MockClock, expect_log: LogWatch) -> None:
    """After a growing pause. Each failure is logged and counted, and its owner gets the cause."""
    for text in ("Too many open files", "no room", "No space left", "a bug", "no memory"):
        expect_log(f"sweep of /run has failed and is tried again.*{text}")
    failing = Failing(*FAILURES)
    heard: list[Exception] = []
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
        tasks.keep_running("sweep", failing.run, subject="/run", failed=heard.append)
        await failing.runs.wait()
        nursery.cancel_scope.cancel()
    began = [at - failing.began[0] for at in failing.began]
    assert began == pytest.approx([0, 1, 3, 7, 15, 31])
    assert tasks.failures.counts() == {"sweep": 5}
    assert [type(error) for error in heard] == [OSError, StoreFull, OSError, ZeroDivisionError, MemoryError]


async def test_returning_is_not_a_failure() -> None:
    """The task is done, and nothing is counted."""
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
        tasks.keep_running("nothing", trio.lowlevel.checkpoint, wakes=[done])
    assert done.is_set() and not tasks.failures.counts()


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
async def test_failing_task_ends_no_other(failure: Exception, expect_log: LogWatch) -> None:
    """It is logged and counted, its owner is informed before its waiters are woken, and the nursery lives."""
    expect_log("index of layer 1 has failed: ")
    heard: list[tuple[Exception, bool]] = []
    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
        other = Failing()
        tasks.start_soon("other", other.run)
        hear = lambda cause: heard.append((cause, ended.is_set()))  # noqa: E731
        tasks.start_soon("index", Failing(failure).run, subject="layer 1", failed=hear, wakes=[ended])
        await ended.wait()
        await other.runs.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    cause = failure.exceptions[0] if isinstance(failure, ExceptionGroup) else failure
    assert heard == [(cause, False)] and tasks.failures.counts() == {"index": 1}


async def test_an_attempt_returns_its_failure(expect_log: LogWatch) -> None:
    """In the caller's own task, which continues."""
    expect_log("background fetch has failed: no room")
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
        failure = await tasks.attempt("background fetch", Failing(FAILURES[1]).run)
        assert failure is FAILURES[1]
        assert await tasks.attempt("background fetch", trio.lowlevel.checkpoint) is None


@pytest.mark.parametrize("how", ["start_soon", "keep_running"])
async def test_a_cancelled_task_wakes_its_waiters(how: str) -> None:
    """A task that is cancelled before it began wakes them too. It has not failed."""
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
        nursery.cancel_scope.cancel()
        getattr(tasks, how)("index", Failing().run, wakes=[event])
    assert event.is_set() and not tasks.failures.counts()


async def test_a_task_that_cannot_start_wakes_its_waiters() -> None:
    """The nursery is closed: the caller gets an error, and the waiters are woken."""
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
    with pytest.raises(RuntimeError):
        tasks.start_soon("index", Failing().run, wakes=[event])
    assert event.is_set()


async def test_an_owner_that_fails_ends_nothing_either(expect_log: LogWatch) -> None:
    """The owner's callback may fail too: the waiters are woken all the same."""
    expect_log("index has failed: no room")
    expect_log("index has failed once more, when its owner was informed: KeyError")

    def forget(_: Exception) -> None:
        raise KeyError("forgotten")

    event = trio.Event()
    async with trio.open_nursery() as nursery:
        Supervisor(nursery).start_soon("index", Failing(FAILURES[1]).run, failed=forget, wakes=[event])
        await event.wait()


async def _in_group(interrupt: type[BaseException]) -> None:
    raise BaseExceptionGroup("of a nursery", [interrupt(), StoreFull("no room")])


async def _alone(interrupt: type[BaseException]) -> None:
    raise interrupt


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("how", [_in_group, _alone])
async def test_interrupts_pass(
    how: Callable[[type[BaseException]], Awaitable[None]], interrupt: type[BaseException], expect_log: LogWatch
) -> None:
    """Exceptions that end the process are not failures, also beside one."""
    if how is _in_group:
        expect_log("index has failed: no room")
    event = trio.Event()
    with pytest.raises(BaseExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            Supervisor(nursery).start_soon("index", how, interrupt, wakes=[event])
    found, others = raised.value.split(interrupt)
    assert found is not None and others is None and event.is_set()


async def test_cancelled_among_failures(expect_log: LogWatch) -> None:
    """A failure during cancellation fails no other task, and is not retried."""
    expect_log("late")

    async def fail_late() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise OSError(errno.EIO, "late")

    with trio.move_on_after(0.01) as scope:
        async with trio.open_nursery() as nursery:
            Supervisor(nursery).keep_running("it", fail_late)
    assert scope.cancelled_caught


async def test_supervisors_within_count_together(expect_log: LogWatch) -> None:
    """Those of one process, in any nursery, and what a guard in a thread has caught."""
    expect_log("index has failed: no room")
    async with trio.open_nursery() as nursery:
        tasks = Supervisor(nursery)
        async with trio.open_nursery() as inner:
            tasks.within(inner).start_soon("index", Failing(FAILURES[1]).run)
        await trio.to_thread.run_sync(partial(tasks.failures.record, "index", LazyfsError("no room")))
    assert tasks.failures.counts() == {"index": 2}


async def test_a_log_without_memory_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no memory for a log line, the failure is counted all the same."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(logging.Logger, "error", fail)
    failures = Failures()
    failures.record("index", MemoryError())
    assert failures.counts() == {"index": 1}
