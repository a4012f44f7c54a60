"""The guard around every handler: pyfuse3 ends the whole mount at any exception except FUSEError."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import trio
from pyfuse3 import FUSEError

from lazyfs.errors import LazyfsError

_log = logging.getLogger(__name__)

_QUIET: Final = 30.0
"""Seconds for which the same failure is not logged again: the kernel requests the same bytes several times."""

P = ParamSpec("P")
T = TypeVar("T")


def guarded(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn any error of `handler` into an errno and a log line."""

    @wraps(handler)
    async def guard(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except LazyfsError as error:
            _complain(str(error))
            raise FUSEError(error.errno) from error
        except Exception as surprise:
            _log.exception("unexpected error in %s%r", handler.__name__, args[1:])
            raise FUSEError(errno.EIO) from surprise

    return guard


_complaints: dict[str, float] = {}


def _complain(message: str) -> None:
    now = trio.current_time()
    if now - _complaints.get(message, -_QUIET) >= _QUIET:
        if len(_complaints) > 1000:
            _complaints.clear()
        _complaints[message] = now
        _log.warning("%s", message)
