"""The allowed transitions, and waiting for a state."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lazyfs.live.lifecycle import LAYER, SOURCE, Lifecycle, State


def test_a_step_that_the_table_lacks() -> None:
    """It is a defect: the task fails."""
    lifecycle = Lifecycle(LAYER)
    lifecycle.move(State.ENDED)
    with pytest.raises(RuntimeError, match="ENDED cannot be followed by KNOWN"):
        lifecycle.move(State.KNOWN)


async def test_a_wait_ends_where_no_step_is_left() -> None:
    """The caller gets the last state, instead of waiting forever."""
    lifecycle = Lifecycle(LAYER)
    lifecycle.move(State.ENDED)
    with trio.fail_after(60):
        assert await lifecycle.wait_for(State.KNOWN) is State.ENDED


async def test_a_cancelled_wait_is_cancelled_in_every_state() -> None:
    """At shutdown, a waiter must not take the end of a source for a failure."""
    lifecycle = Lifecycle(SOURCE)
    with trio.CancelScope() as before:
        before.cancel()
        lifecycle.move(State.ENDED)
        await lifecycle.wait_for(State.READY, State.ENDED)
        pytest.fail("a cancelled wait returned")

    lifecycle = Lifecycle(SOURCE)
    returned = False

    async def wait() -> None:
        nonlocal returned
        await lifecycle.wait_for(State.READY, State.ENDED)
        returned = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        lifecycle.move(State.ENDED)  # wakes the waiter, which is cancelled before it runs
        nursery.cancel_scope.cancel()
    assert not returned
