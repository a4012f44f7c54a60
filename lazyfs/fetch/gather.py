"""Small jobs for a thread, gathered: those that come while one is done go together, on the next trip.

What a miss asks of a thread (a claim: two questions to the index; a few KiB to inflate, verify and keep) is done sooner than the
thread is there and back. More threads at once make it worse: they wait for the index, for the interpreter, and for each other. So
there are one or two trips at a time, and each takes along who has come by then. Nobody waits for company: who comes first goes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

import trio

Q = TypeVar("Q")
A = TypeVar("A")


_MOST: Final = 16
"""Jobs on a trip: the first waits for the last."""


class _Turn(Generic[Q, A]):
    """A job that waits to be done, or to be the one that takes others along."""

    def __init__(self, job: Q) -> None:
        self.job = job
        self.come = trio.Event()
        self.load: list[_Turn[Q, A]] = []
        """Who goes with it, itself included: it has a trip."""
        self.answer: A | None = None
        self.error: BaseException | None = None


class Gather(Generic[Q, A]):
    """Has `work` done in threads, `trips` at a time: it is given some jobs, and returns what comes of each."""

    def __init__(self, work: Callable[[Sequence[Q]], Sequence[A]], threads: trio.CapacityLimiter, *, trips: int) -> None:
        self._work = work
        self._threads = threads
        self._free = trips
        """While there are any, nobody waits."""
        self._waiting: list[_Turn[Q, A]] = []

    async def do(self, job: Q) -> A:
        """What comes of a job. Raises what `work` raises, which all who went together get.

        Not to be cancelled on its way, because what comes of it may have to be given back: a claim.
        """
        turn = _Turn[Q, A](job)
        with trio.CancelScope(shield=True):
            if self._free:
                self._free -= 1
                await self._go([turn])
            else:
                self._waiting.append(turn)
                await turn.come.wait()
                if turn.load:
                    await self._go(turn.load)
        if turn.error is not None:
            raise turn.error
        return turn.answer  # type: ignore[return-value]  # it is done: this is an A, and that may be None

    async def _go(self, turns: list[_Turn[Q, A]]) -> None:
        try:
            work = partial(self._work, [turn.job for turn in turns])
            for turn, answer in zip(turns, await trio.to_thread.run_sync(work, limiter=self._threads), strict=True):
                turn.answer = answer
        except BaseException as error:  # it goes to those who asked, whatever it is: an answer they have not got
            for turn in turns:
                turn.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for turn in turns:
                turn.come.set()
            load, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            if load:
                load[0].load = load
                load[0].come.set()
            else:
                self._free += 1
