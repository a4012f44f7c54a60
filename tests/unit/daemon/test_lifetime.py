"""How long lazyfsd runs, in virtual time; and its forced exit, in a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.daemon.lifetime import LINGER, Lifetime
from lazyfs.errors import MountFailed

_STUBBORN = """
import signal, sys, threading, time, trio
from lazyfs.daemon import lifetime

def never(): time.sleep(1000)

async def main():
    one = lifetime.Lifetime(service=False)
    with one.stop_on_signals():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, never)
            threading.Thread(target=never).start()
            print("up", flush=True)
            {wait}
            nursery.cancel_scope.cancel()

lifetime.ForcedExit.__init__.__defaults__ = (0.2,)
trio.run(main)
"""


@asynccontextmanager
async def running(lifetime: Lifetime) -> AsyncIterator[Callable[[], bool]]:
    """Wait for the end of a lifetime; yields a function that says whether it has come."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifetime.wait_for_end)
        await wait_all_tasks_blocked()
        yield lambda: lifetime.is_over
        nursery.cancel_scope.cancel()


async def test_first_order_is_waited_for(autojump_clock: MockClock) -> None:
    """And not longer if it does not come."""
    async with running(Lifetime(service=False)) as is_over:
        await trio.sleep(LINGER - 0.1)
        assert not is_over()
        await trio.sleep(0.2)
        assert is_over()


@pytest.mark.parametrize("volatile", [False, True])
async def test_order_that_begins_at_the_end_of_a_linger(volatile: bool, autojump_clock: MockClock) -> None:
    """At 9.5 s, the first one or one after a `lazyfs run`: it is never cut, however long it takes, and the linger begins again."""
    lifetime = Lifetime(service=False)
    lifetime.last_was_volatile = volatile
    async with running(lifetime) as is_over:
        await trio.sleep(9.5)
        with lifetime.uses.in_use():
            lifetime.was_asked = volatile
            await trio.sleep(1000)
            assert not is_over()
        await trio.sleep(9.5)
        assert not is_over()
        await trio.sleep(1)
        assert is_over()


async def test_order_that_takes_no_time_begins_the_linger_again(autojump_clock: MockClock) -> None:
    """It has come and gone before the waiting task ran."""
    lifetime = Lifetime(service=False)
    async with running(lifetime) as is_over:
        await trio.sleep(9.5)
        lifetime.uses.change(+1)
        lifetime.uses.change(-1)
        await trio.sleep(9.5)
        assert not is_over()


async def test_orders_beside_the_last_mount(autojump_clock: MockClock) -> None:
    """What begins just before the last unmount goes on after it; the daemon ends with the last of both, at once."""
    lifetime = Lifetime(service=False)
    lifetime.was_asked = True
    lifetime.uses.change(+1)
    async with running(lifetime) as is_over:
        await trio.sleep(100)
        with lifetime.uses.in_use():
            lifetime.uses.change(-1)
            await trio.sleep(100)
            assert not is_over()
        await wait_all_tasks_blocked()
        assert is_over()


async def test_a_service_stays_until_it_is_stopped(autojump_clock: MockClock) -> None:
    """Whatever it does not do."""
    lifetime = Lifetime(service=True)
    async with running(lifetime) as is_over:
        await trio.sleep(10_000)
        assert not is_over()
        lifetime.stop_requested.set()
        await wait_all_tasks_blocked()
        assert is_over()


async def test_end_of_the_gate(autojump_clock: MockClock) -> None:
    """Is an error, so that the keeper starts another daemon; not after a stop request."""
    for stop_requested in (False, True):
        lifetime = Lifetime(service=True)
        lifetime.gate_ended.set()
        if stop_requested:
            lifetime.stop_requested.set()
            await lifetime.wait_for_end()
        else:
            with pytest.raises(MountFailed, match="from outside"):
                await lifetime.wait_for_end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("wait", ["await one.stop_requested.wait()", "time.sleep(1000)"])
def test_a_stop_request_ends_the_process(wait: str, number: int) -> None:
    """With 0, whatever its threads are doing, the event loop's included."""
    command = [sys.executable, "-c", _STUBBORN.format(wait=wait)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, said.decode()
    assert b"forced exit" in said
