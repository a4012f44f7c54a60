"""How long a lazyfsd lives, and how it ends when it was told to.

It lives while something uses it: a mount whose end will be heard of, or a client that is connected, which is an order under way. All of
them are counted in one place, and each change is announced, so that an order that begins while the last seconds run is never cut.

Told to end by a signal, it has 10 seconds, whatever its threads are doing. After that the process ends without ceremony, with 0, so that
its keeper does not start another one: to be killed at any moment is safe (lazyfs/README.md, "What is on disk").
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
"""Seconds for which it stays after the last throw-away mount, because one container is often followed by another; and for the
first order, which is why it was started."""
LAST_RESORT: Final = 10.0
"""Seconds between a signal to end and the end, at most."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Life:
    """Of one daemon. Not for threads."""

    def __init__(self, *, service: bool) -> None:
        """A `service` stays when nothing uses it."""
        self.uses = Uses()
        if service:
            self.uses.change(+1)
        self.was_asked = False
        """Whether an order came. Until then the daemon waits for the one that it was started for."""
        self.last_was_volatile = False
        """Of the mount that ended last: what it was for will probably be wanted again."""
        self.stop_requested = trio.Event()
        """Set by a signal: the daemon is to end, used or not."""
        self.gate_ended = trio.Event()
        self.is_over = False
        """Nothing that comes from now on is carried out."""

    async def wait_for_end(self) -> None:
        """Until nothing has used the daemon for a while, or it was told to end. Raises MountFailed: the gate's connection has ended."""
        async with trio.open_nursery() as nursery:
            for end in (partial(self.uses.wait_until_unused, self._linger), self.stop_requested.wait, self.gate_ended.wait):
                nursery.start_soon(_first, end, nursery.cancel_scope)
        self.is_over = True
        if self.gate_ended.is_set() and not self.stop_requested.is_set():
            # The next process, which the keeper starts at once, makes a new one, and all mounts anew.
            raise MountFailed("the gate's connection was ended from outside", hint="Its mounts are restored")

    def _linger(self) -> float:
        return LINGER if self.last_was_volatile or not self.was_asked else 0.0

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT set `told`, and start the clock of the last resort. Inside of trio, in the main thread."""
        resort = LastResort()
        token = trio.lowlevel.current_trio_token()

        def stop(number: int) -> None:
            _log.info("stopping: received %s", signal.Signals(number).name)
            self.stop_requested.set()

        def heard(number: int, _frame: FrameType | None) -> None:
            resort.begin()  # even where the event loop never comes to the rest
            token.run_sync_soon(stop, number)

        before = {number: signal.signal(number, heard) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A second signal must not end with an error what the first one is ending.
                signal.signal(number, signal.SIG_IGN if self.stop_requested.is_set() else handler)


class LastResort:
    """Ends the process some time after `begin`, in a thread that waits for nothing else."""

    def __init__(self, patience: float = LAST_RESORT) -> None:
        self._patience = patience
        self._begun = os.eventfd(0, os.EFD_CLOEXEC)
        threading.Thread(target=self._run, name="lazyfsd-last-resort", daemon=True).start()

    def begin(self) -> None:
        """Start the clock; a second time changes nothing. May be called by a signal handler."""
        os.eventfd_write(self._begun, 1)

    def _run(self) -> None:
        os.read(self._begun, 8)  # unlike eventfd_read, it goes on after a signal
        time.sleep(self._patience)
        os.write(2, b"lazyfsd was told to end and has not: it ends now, whatever is under way\n")
        os._exit(0)


async def _first(end: Callable[[], Awaitable[None]], others: trio.CancelScope) -> None:
    await end()
    others.cancel()
