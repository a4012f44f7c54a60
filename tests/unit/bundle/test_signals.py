"""Signals held back, let in, and held back again: none is lost, and none ends a process half-way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lazyfs.bundle.signals import Stopped, hold_signals, stop_on_signals


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Each test leaves handlers and mask as they were."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    changed = [signal.getsignal(number) for number in numbers] != handlers or signal.pthread_sigmask(signal.SIG_BLOCK, ()) != mask
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert not changed


def send(number: int) -> None:
    signal.raise_signal(number)  # to this thread: faulthandler's own, a new one for each test, holds nothing back when it starts


def test_held_signals_can_be_taken() -> None:
    """What came while they are held waits, and can be waited for."""
    with hold_signals() as mask:
        send(signal.SIGUSR1)
        assert signal.sigwaitinfo({signal.SIGUSR1}).si_pid == os.getpid()
    assert signal.SIGUSR1 not in mask


def test_what_nobody_takes_is_dropped() -> None:
    """A SIGTERM that comes while a container is cleared away does not end the process behind it."""
    with hold_signals():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGRTMIN, signal.SIGRTMIN):
            send(number)


def test_signals_end_what_may_be_ended() -> None:
    """Inside they raise, the one that came before it as well; behind it they wait again."""
    with hold_signals():
        with pytest.raises(Stopped) as stopped, stop_on_signals():
            send(signal.SIGTERM)
        assert stopped.value.number == signal.SIGTERM
        send(signal.SIGINT)
        with pytest.raises(Stopped) as stopped, stop_on_signals():
            pytest.fail("it did not come")
        assert stopped.value.number == signal.SIGINT
        send(signal.SIGHUP)


def test_ignored_signals_stay_ignored() -> None:
    """nohup(1) means it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hold_signals(), stop_on_signals():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
