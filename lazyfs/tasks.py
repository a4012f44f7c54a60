"""Supervised tasks: one that fails is logged by name and counted, its owner is informed, and everything else goes on.

In trio an exception that leaves a task cancels the whole nursery. In a process that serves many containers, a defect in one layer, or a
descriptor (EMFILE), a byte of disk (ENOSPC) or memory that cannot be had for a moment, would take every container's files away. So only
what a process cannot do without runs directly in its outermost nursery. Everything else is started by a Supervisor:

    tasks = Supervisor(nursery)
    tasks.start_soon("layer index", index, layer, subject=layer.digest, failed=live.fail, wakes=[live.indexed])
    tasks.keep_running("store upkeep", upkeep.run)            # started again, after a pause, until it returns
    error = await tasks.attempt("background fetch", background.run, subject=image.name)    # in the caller's own task

What each argument is for:

    kind       what the task does. Failures are counted by it, and metrics have one series for each: a constant, never a digest
    subject    what it does it to, for the log: "layer index of sha256:…"
    failed     called with the exception, once for each failure: the owner marks its layer as not lazy, or its order as failed
    wakes      events that are set when the task has ended, in whatever way, after `failed` was called. Whatever waits on an event that a
               supervised task sets passes it here: it is set even where the task never came to the line that would have set it

A failure is any Exception, MemoryError and groups included (of a group, `failed` is given the most_severe). Cancellation,
KeyboardInterrupt and SystemExit pass through, also out of a group that holds failures as well.

Inside of a supervised task, a plain nursery is fine where its tasks live and fail together: what fails there ends the supervised task, and
nothing else. Where they should not, `tasks.within(nursery)` supervises them, with the same counts:

    async with trio.open_nursery() as nursery:
        inner = self._tasks.within(nursery)
        inner.keep_running("pulls of a repository", self._fetch_rest, repository, subject=repository.name)
        await repository.uses.wait_until_unused()
        nursery.cancel_scope.cancel()

What is caught elsewhere, by a guard that answers somebody (an order, a call of containerd), is recorded with `failures.record`, which any
thread may call. tests/unit/surprises/test_surprises.py lists every task that lazyfs starts, and what a surprise in it comes to.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from lazyfs.errors import LazyfsError, most_severe

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0

Run = Callable[..., Awaitable[object]]
Failed = Callable[[Exception], None]


class Failures:
    """What has failed in this process, by kind. For any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """How often each kind of task has failed; only those that have."""
        with self._lock:
            return dict(self._counts)

    def record(self, kind: str, error: Exception, subject: str = "", then: str = "") -> Exception:
        """Count a failure and log it; `then` says what follows. Returns the cause: `error`, or the most_severe of a group."""
        with self._lock:
            self._counts[kind] += 1
        cause = cause_of(error)
        what = f"{kind} of {subject}" if subject else kind
        with suppress(Exception):  # memory that is short for the task may be short for the line as well
            if isinstance(cause, (LazyfsError, OSError)):
                _log.warning("%s has failed%s: %s", what, then, cause)
            else:
                _log.error("%s has failed%s: %r", what, then, cause, exc_info=error)
        return cause


class Supervisor:
    """Starts tasks in a nursery that none of them can end. Not for threads."""

    def __init__(self, nursery: trio.Nursery, failures: Failures | None = None) -> None:
        self._nursery = nursery
        self.failures = failures or Failures()

    def within(self, nursery: trio.Nursery) -> Supervisor:
        """A supervisor of tasks in another nursery, which counts with this one."""
        return Supervisor(nursery, self.failures)

    def start_soon(
        self,
        kind: str,
        run: Run,
        *arguments: object,
        subject: str = "",
        failed: Failed | None = None,
        wakes: Iterable[trio.Event] = (),
    ) -> None:
        """Run `run(*arguments)` once."""
        self._start(kind, subject, partial(self.attempt, kind, run, *arguments, subject=subject, failed=failed), tuple(wakes))

    def keep_running(
        self,
        kind: str,
        run: Run,
        *arguments: object,
        subject: str = "",
        failed: Failed | None = None,
        wakes: Iterable[trio.Event] = (),
    ) -> None:
        """Run `run(*arguments)` until it returns, again after a pause whenever it fails. The pause grows from 1 to 60 seconds while it
        fails soon after it began. `wakes` are set when it has returned or was cancelled, not while it is tried again."""
        self._start(kind, subject, partial(self._again, kind, subject, run, arguments, failed), tuple(wakes))

    async def attempt(
        self, kind: str, run: Run, *arguments: object, subject: str = "", failed: Failed | None = None
    ) -> Exception | None:
        """Run `run(*arguments)` once, in the caller's task. The failure, if there was one. Cancelled: `run` is."""
        return await self._attempt(kind, subject, run, arguments, failed, "")

    async def _again(self, kind: str, subject: str, run: Run, arguments: tuple[object, ...], failed: Failed | None) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = trio.current_time()
            then = f" and is tried again in {pause:.0f} s"
            if await self._attempt(kind, subject, run, arguments, failed, then) is None:
                return
            await trio.sleep(pause)
            pause = _FIRST_PAUSE if trio.current_time() - began > 2 * _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(
        self, kind: str, subject: str, run: Run, arguments: tuple[object, ...], failed: Failed | None, then: str
    ) -> Exception | None:
        try:
            await run(*arguments)
        except BaseExceptionGroup as group:
            errors, passing = group.split(Exception)
            cause = self._failed(kind, subject, errors, failed, then) if errors is not None else None
            if passing is not None:
                raise passing from None  # a cancellation, or an interrupt
            return cause
        except Exception as error:  # noqa: BLE001  what this module is for
            return self._failed(kind, subject, error, failed, then)
        return None

    def _failed(self, kind: str, subject: str, error: Exception, failed: Failed | None, then: str) -> Exception:
        cause = self.failures.record(kind, error, subject, then)
        if failed is not None:
            try:
                failed(cause)
            except Exception as surprise:  # noqa: BLE001  its owner fails as well: that ends nothing either
                self.failures.record(kind, surprise, subject, " once more, when its owner was informed")
        return cause

    def _start(self, kind: str, subject: str, run: Callable[[], Awaitable[object]], wakes: tuple[trio.Event, ...]) -> None:
        try:
            self._nursery.start_soon(_waking, run, wakes, name=f"{kind} of {subject}" if subject else kind)
        except BaseException:
            _wake(wakes)
            raise


def cause_of(error: Exception) -> Exception:
    """The error to report: itself, or the most_severe of a group."""
    cause = most_severe(error) if isinstance(error, BaseExceptionGroup) else error
    return cause if isinstance(cause, Exception) else error


async def _waking(run: Callable[[], Awaitable[object]], wakes: tuple[trio.Event, ...]) -> None:
    try:
        await run()
    finally:
        _wake(wakes)


def _wake(events: tuple[trio.Event, ...]) -> None:
    for event in events:
        event.set()
