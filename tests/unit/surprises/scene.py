"""What a scenario has in its hands: a surprise that waits at one place, and where failures are counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from lazyfs.store.store import Store
from lazyfs.tasks import Failures, Supervisor
from tests.conftest import LogWatch

PATIENCE = 60.0
"""Seconds after which something hangs."""


class Scene:
    """One scenario's."""

    def __init__(self, folder: Path, error: Exception, patch: pytest.MonkeyPatch, expect: LogWatch, stack: ExitStack) -> None:
        self.folder = folder
        self.error = error
        self.patch = patch
        self.expect = expect
        self.stack = stack
        self.failures = Failures()

    def store(self) -> Store:
        """An empty one, open until the scenario has ended."""
        return self.stack.enter_context(Store.open(self.folder / "store"))

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Supervisor]:
        """A supervisor as lazyfsd has it. The nursery lives on until the block is left: nothing that fails inside may end it."""
        alive = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_at_end, alive)
            yield Supervisor(nursery, self.failures)
            await trio.testing.wait_all_tasks_blocked()
            assert not alive.is_set(), "the others were cancelled"
            nursery.cancel_scope.cancel()

    async def until_failed(self, kind: str) -> None:
        """Until a task of that kind has failed."""
        await until(lambda: kind in self.failures.counts())


async def _set_at_end(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


async def until(condition: Callable[[], object]) -> None:
    """Until it is so, whatever threads and processes have to do with it."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


Scenario = Callable[[Scene], Awaitable[None]]
