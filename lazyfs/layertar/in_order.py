"""Runs jobs for layers in order, a few at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio


async def run_in_order(jobs: Iterable[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run all jobs, `at_once` at a time, begun in order. A job that waits for lower layers never waits for one that has not begun.

    Raises what they raise, in an ExceptionGroup, after cancelling the others. Cancelled: all are cancelled.
    """
    room = trio.Semaphore(at_once)

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        await job()
        room.release()

    async with trio.open_nursery() as nursery:
        for job in jobs:
            await room.acquire()
            nursery.start_soon(run, job)
