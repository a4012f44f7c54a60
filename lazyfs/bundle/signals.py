"""Signal handling of `lazyfs run`: before the program runs, signals stop the command; afterwards they are passed on. None is lost between."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

PASSED_ON: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGTERM,
        signal.SIGWINCH,
    }
    | set(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
)
"""Signals that a program may handle. Not the stop signals: stopping the terminal's job stops runc as well."""
_STOPPING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal arrived before the program ran."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@contextmanager
def hold_signals() -> Iterator[frozenset[int]]:
    """Block signals inside; yields the previous mask, for the program. Signals still pending at the end are dropped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    try:
        yield frozenset(before)
    finally:
        while signal.sigtimedwait(PASSED_ON, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside of `hold_signals`: SIGHUP, SIGINT and SIGTERM raise Stopped in this block, unless they were ignored before."""
    handlers = {number: signal.getsignal(number) for number in _STOPPING}
    ending = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    for number in ending:
        signal.signal(number, _stop)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        for number in ending:
            signal.signal(number, handlers[number])


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)
