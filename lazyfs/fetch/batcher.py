"""Batches small jobs for a worker thread: jobs that arrive while one batch runs form the next.

What a miss needs from a thread (a claim: two queries of the index; a few KiB to inflate, verify and keep) takes less time than handing it
to the thread and back. More threads make it worse: they wait for the index, for the interpreter and for each other. So one or two
batches run at a time, and each takes the jobs that have arrived by then. No job waits for others: the first starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

import trio

Q = TypeVar("Q")
A = TypeVar("A")


_MOST: Final = 16
"""Jobs in a batch: the first one waits for the last."""


class _Job(Generic[Q, A]):
    """A job that waits to be done, or to run the next batch."""

    def __init__(self, item: Q) -> None:
        self.item = item
        self.ready = trio.Event()
        self.batch: list[_Job[Q, A]] = []
        """The jobs that this one runs, itself included; empty while it waits, or when another job ran it."""
        self.answer: A | None = None
        self.error: BaseException | None = None


class Batcher(Generic[Q, A]):
    """Calls `work` in threads, at most `at_once` calls at a time. `work` gets several items and returns a result for each."""

    def __init__(self, work: Callable[[Sequence[Q]], Sequence[A]], threads: trio.CapacityLimiter, *, at_once: int) -> None:
        self._work = work
        self._threads = threads
        self._free = at_once
        """Calls that may still start. While there are any, no job waits."""
        self._waiting: list[_Job[Q, A]] = []

    async def submit(self, item: Q) -> A:
        """The result for one item. Raises what `work` raises; every job of the batch gets the same error.

        Shielded from cancellation, because the result may have to be released: a claim.
        """
        job = _Job[Q, A](item)
        with trio.CancelScope(shield=True):
            if self._free:
                self._free -= 1
                await self._run([job])
            else:
                self._waiting.append(job)
                await job.ready.wait()
                if job.batch:
                    await self._run(job.batch)
        if job.error is not None:
            raise job.error
        return job.answer  # type: ignore[return-value]  # it is done: this is an A, and that may be None

    async def _run(self, jobs: list[_Job[Q, A]]) -> None:
        try:
            work = partial(self._work, [job.item for job in jobs])
            for job, answer in zip(jobs, await trio.to_thread.run_sync(work, limiter=self._threads), strict=True):
                job.answer = answer
        except BaseException as error:  # every waiting job must get it, whatever it is: it has no result
            for job in jobs:
                job.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for job in jobs:
                job.ready.set()
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            if batch:
                batch[0].batch = batch
                batch[0].ready.set()
            else:
                self._free += 1
