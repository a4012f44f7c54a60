"""How long lazyfsd runs, and how it stops on a signal.

lazyfsd runs while something uses it: a mount whose unmount it will see, or a connected client, which is an order in progress. All uses
are counted in one place, and each change is announced, so that an order that begins in the last seconds is never cut off.

After SIGTERM or SIGINT it has 10 seconds, whatever its threads are doing. Then the process exits at once, with 0, so that its keeper does
not start another one. That loses nothing: lazyfsd may be killed at any moment (lazyfs/README.md, "What is on disk").
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

import trio

from lazyfs.errors import MountFailed
from lazyfs.live.uses import Uses

_log = logging.getLogger(__name__)

LINGER: Final = 10.0
"""Seconds to wait for another order after the last volatile mount, because one container is often followed by another; and for the
first order, for which lazyfsd was started."""
STOP_DEADLINE: Final = 10.0
"""Seconds between a signal and the forced exit."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Lifetime:
    """What keeps one lazyfsd running, and what stops it. Not thread-safe."""

    def __init__(self, *, service: bool) -> None:
        """A `service` keeps running when nothing uses it."""
        self.uses = Uses()
        if service:
            self.uses.change(+1)
        self.was_asked = False
        """Whether an order has come. Until then lazyfsd waits for the one that it was started for."""
        self.last_was_volatile = False
        """Whether the mount that ended last was volatile: another one will probably follow."""
        self.stop_requested = trio.Event()
        """Set by a signal: lazyfsd stops, used or not."""
        self.gate_ended = trio.Event()
        self.is_over = False
        """Set when `wait_for_end` returns: orders that come later are refused."""

    async def wait_for_end(self) -> None:
        """Wait until nothing has used lazyfsd for a while, or a signal came. Raises MountFailed when the gate's connection has ended.

        Cancelled: nothing is left behind.
        """
        async with trio.open_nursery() as nursery:
            for end in (partial(self.uses.wait_until_unused, self._linger), self.stop_requested.wait, self.gate_ended.wait):
                nursery.start_soon(_first, end, nursery.cancel_scope)
        self.is_over = True
        if self.gate_ended.is_set() and not self.stop_requested.is_set():
            # The keeper starts the next process at once. That one makes a new connection, and all mounts again.
            raise MountFailed("the gate's connection was ended from outside", hint="Its mounts are restored")

    def _linger(self) -> float:
        return LINGER if self.last_was_volatile or not self.was_asked else 0.0

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT set `stop_requested` and start the countdown to the forced exit. Call it in trio's main thread."""
        forced_exit = ForcedExit()
        token = trio.lowlevel.current_trio_token()

        def stop(number: int) -> None:
            _log.info("stopping: received %s", signal.Signals(number).name)
            self.stop_requested.set()

        def handle_signal(number: int, _frame: FrameType | None) -> None:
            forced_exit.begin()  # even where the event loop never runs `stop`
            token.run_sync_soon(stop, number)

        before = {number: signal.signal(number, handle_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A second signal must not turn the stop into a failure.
                signal.signal(number, signal.SIG_IGN if self.stop_requested.is_set() else handler)


class ForcedExit:
    """Ends the process some time after `begin`, from a thread that waits for nothing else."""

    def __init__(self, patience: float = STOP_DEADLINE) -> None:
        self._patience = patience
        self._begun = os.eventfd(0, os.EFD_CLOEXEC)
        threading.Thread(target=self._run, name="lazyfsd-forced-exit", daemon=True).start()

    def begin(self) -> None:
        """Start the countdown; further calls change nothing. Safe in a signal handler."""
        os.eventfd_write(self._begun, 1)

    def _run(self) -> None:
        os.read(self._begun, 8)  # unlike eventfd_read, it is restarted after a signal
        time.sleep(self._patience)
        os.write(2, b"lazyfsd did not stop in time after a signal: forced exit\n")
        os._exit(0)


async def _first(end: Callable[[], Awaitable[None]], others: trio.CancelScope) -> None:
    await end()
    others.cancel()
