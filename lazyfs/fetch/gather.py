"""Small jobs for a thread, gathered: those that come while one is done go together, on the next trip.

What a miss asks of a thread (a claim: two questions to the index; a few KiB to inflate, verify and keep) is done sooner than the
thread is there and back. More threads at once make it worse: they wait for the index, for the interpreter, and for each other. So
there is one trip at a time, which takes along all who have come by then. Nobody waits for company: who comes alone goes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import trio

Q = TypeVar("Q")
A = TypeVar("A")


class _Turn(Generic[Q, A]):
    """A job that waits to be done, or to be the one that takes all who wait along."""

    def __init__(self, job: Q) -> None:
        self.job = job
        self.come = trio.Event()
        self.answer: A | None = None
        self.error: Exception | None = None
        self.done = False


class Gather(Generic[Q, A]):
    """Has `work` done in threads: it is given some jobs, and returns what comes of each."""

    def __init__(self, work: Callable[[Sequence[Q]], Sequence[A]], threads: trio.CapacityLimiter) -> None:
        self._work = work
        self._threads = threads
        self._waiting: list[_Turn[Q, A]] = []
        self._busy = False

    async def do(self, job: Q) -> A:
        """What comes of a job. Raises what `work` raises, which all who went together get.

        Not to be cancelled on its way, because what comes of it may have to be given back: a claim.
        """
        turn = _Turn[Q, A](job)
        self._waiting.append(turn)
        with trio.CancelScope(shield=True):
            if self._busy:
                await turn.come.wait()
            if not turn.done:
                await self._go()
        if turn.error is not None:
            raise turn.error
        return turn.answer  # type: ignore[return-value]  # it is done: this is an A, and that may be None

    async def _go(self) -> None:
        turns, self._waiting = self._waiting, []
        self._busy = True
        try:
            work = partial(self._work, [turn.job for turn in turns])
            for turn, answer in zip(turns, await trio.to_thread.run_sync(work, limiter=self._threads), strict=True):
                turn.answer = answer
        except Exception as error:  # noqa: BLE001  # not swallowed: it goes to those who asked
            for turn in turns:
                turn.error = error
        finally:
            for turn in turns:
                turn.done = True
                turn.come.set()
            self._busy = bool(self._waiting)
            if self._waiting:
                self._waiting[0].come.set()  # it takes all who wait by then
