"""Signals of a command that stands for another program: first they end it, later they are the program's; none is lost between."""

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
"""What a program may make something of. Not those that stop: whoever stops the terminal's job stops runc with it."""
_STOPPING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal came before the program ran."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@contextmanager
def hold_signals() -> Iterator[frozenset[int]]:
    """Signals wait inside; yields the mask from before, which is a new program's. What nobody took is dropped at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    try:
        yield frozenset(before)
    finally:
        while signal.sigtimedwait(PASSED_ON, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside of `hold_signals`: those that end a program, unless they were ignored from the start, raise Stopped in here."""
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
