"""Supervised tasks: a task that fails is logged by name and counted, its owner is informed, and everything else continues.

In trio, an exception that leaves a task cancels the whole nursery. In a process that serves many containers, a defect in one
layer would take away the files of every container, and so would a moment without a descriptor (EMFILE), disk space (ENOSPC) or
memory. So only what a process cannot do without runs directly in its outermost nursery. Everything else is started by a
Supervisor:

    tasks = Supervisor(nursery)
    tasks.start_soon("layer index", index, layer, subject=layer.digest, failed=live.fail, wakes=[live.indexed])
    tasks.keep_running("store upkeep", upkeep.run)            # started again, after a pause, until it returns
    error = await tasks.attempt("background fetch", background.run, subject=image.name)    # in the caller's own task

The arguments:

    kind       what the task does. Failures are counted by it, and metrics have one series for each: a constant, never a digest
    subject    what the task works on, for the log: "layer index of sha256:…"
    failed     called with the exception once per failure: the owner marks its layer as not lazy, or its order as failed
    wakes      events that are set when the task has ended in any way, after `failed` was called. An event that a supervised task
               sets is passed here by its waiter: it is set even if the task never reached the line that would have set it

A failure is any Exception, including MemoryError and groups (for a group, `failed` gets its most severe error). Cancellation,
KeyboardInterrupt and SystemExit pass through, also out of a group that contains failures.

Within a supervised task, a plain nursery is fine if its tasks live and fail together: a failure in it ends the supervised task,
and nothing else. If they should not, `tasks.within(nursery)` supervises them, with the same counts:

    async with trio.open_nursery() as nursery:
        inner = self._tasks.within(nursery)
        inner.keep_running("pulls of a repository", self._fetch_rest, repository, subject=repository.name)
        await repository.uses.wait_until_unused()
        nursery.cancel_scope.cancel()

An exception that is caught elsewhere, to answer an order or a call of containerd, is recorded with `failures.record`, which any
thread may call. tests/unit/surprises/test_surprises.py lists every task that lazyfs starts, and the effect of an unexpected
error in it.
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
    """Counts the failures of this process by kind. Any thread may call it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """The number of failures of each kind that has failed."""
        with self._lock:
            return dict(self._counts)

    def record(self, kind: str, error: Exception, subject: str = "", then: str = "") -> Exception:
        """Count and log a failure; `then` says what follows. Returns the cause: `error`, or the most severe one of a group."""
        with self._lock:
            self._counts[kind] += 1
        cause = cause_of(error)
        what = f"{kind} of {subject}" if subject else kind
        with suppress(Exception):  # if memory is short for the task, it may be short for the log line too
            if isinstance(cause, (LazyfsError, OSError)):
                _log.warning("%s has failed%s: %s", what, then, cause)
            else:
                _log.error("%s has failed%s: %r", what, then, cause, exc_info=error)
        return cause


class Supervisor:
    """Starts tasks in a nursery that none of them can cancel. For the event loop."""

    def __init__(self, nursery: trio.Nursery, failures: Failures | None = None) -> None:
        self._nursery = nursery
        self.failures = failures or Failures()

    def within(self, nursery: trio.Nursery) -> Supervisor:
        """A supervisor of tasks in another nursery, with the same counts."""
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
        """Run `run(*arguments)` until it returns; after a failure, again after a pause. The pause grows from 1 to 60 seconds
        while it fails soon after it began. `wakes` are set when it has returned or was cancelled, not between tries."""
        self._start(kind, subject, partial(self._again, kind, subject, run, arguments, failed), tuple(wakes))

    async def attempt(
        self, kind: str, run: Run, *arguments: object, subject: str = "", failed: Failed | None = None
    ) -> Exception | None:
        """Run `run(*arguments)` once, in the caller's task. Returns the failure, if there was one. Cancelled: `run` is."""
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
            except Exception as surprise:  # noqa: BLE001  the owner has failed too, and that must not end anything either
                self.failures.record(kind, surprise, subject, " once more, when its owner was informed")
        return cause

    def _start(self, kind: str, subject: str, run: Callable[[], Awaitable[object]], wakes: tuple[trio.Event, ...]) -> None:
        try:
            self._nursery.start_soon(_waking, run, wakes, name=f"{kind} of {subject}" if subject else kind)
        except BaseException:
            _wake(wakes)
            raise


def cause_of(error: Exception) -> Exception:
    """The error to report: itself, or the most severe one of a group."""
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
