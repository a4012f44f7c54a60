"""Tasks that nobody waits for, in a process that serves many: one that fails is logged, and ends nothing but itself.

A descriptor or a byte of disk that cannot be had for a moment (EMFILE, ENOSPC) passes. A daemon that ends because of it takes every
container's files away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from lazyfs.errors import LazyfsError, foremost

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0

Run = Callable[..., Awaitable[object]]


class Guarded:
    """Starts tasks in a nursery, as the nursery does, but none of them can end it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, run: Run, *arguments: object) -> None:
        """Run `run(*arguments)`, once. What goes wrong is logged."""
        self._nursery.start_soon(_guarded, run, arguments)


Tasks = trio.Nursery | Guarded
"""Where a task can be started."""


async def keep_running(what: str, run: Run, *arguments: object) -> None:
    """Run `run(*arguments)` until it returns, again after a pause whenever it fails; `what` names it in the log.

    The pause grows from 1 to 60 seconds while it fails at once. Cancelled: `run` is.
    """
    pause = _FIRST_PAUSE
    while True:
        began = trio.current_time()
        if await _succeeds(run, arguments, f"{what} has failed and is tried again in {pause:.0f} s"):
            return
        await trio.sleep(pause)
        pause = _FIRST_PAUSE if trio.current_time() - began > 2 * _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)


async def _guarded(run: Run, arguments: tuple[object, ...]) -> None:
    name = getattr(run, "__qualname__", repr(run))
    await _succeeds(run, arguments, f"{name} has ended")


async def _succeeds(run: Run, arguments: tuple[object, ...], failed: str) -> bool:
    try:
        await run(*arguments)
    except BaseExceptionGroup as group:
        errors, passing = group.split(Exception)
        if errors is not None:
            _tell(failed, errors)
        if passing is not None:
            raise passing from None  # a cancellation, or an interrupt
        return False
    except Exception as error:  # noqa: BLE001  the guard of what nobody waits for
        _tell(failed, error)
        return False
    return True


def _tell(failed: str, error: BaseException) -> None:
    cause = foremost(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(cause, (LazyfsError, OSError)):
        _log.warning("%s: %s", failed, cause)
    else:
        _log.error("%s: %r", failed, cause, exc_info=error)
