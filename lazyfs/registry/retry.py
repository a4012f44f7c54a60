"""Retries of transient failures, with growing pauses, under one deadline for everything.

Transient are failed and broken connections, 429, and the 5xx of a server in trouble. Everything else is reported at once. The
number of tries is bounded as well, so that an unreachable registry does not take the whole deadline.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, TypeVar

import trio

from lazyfs.errors import HeldOff, SourceError, Unreachable

DEADLINE: Final = 30.0
"""Seconds from the request to the first byte of the response, including tokens, redirects and retries."""
TRIES: Final = 5
PROMPTLY: Final = 5.0
"""Seconds for an unneeded body, such as that of an error or of an upload's response. If it breaks off or does not arrive, the
head counts.
"""
T = TypeVar("T")
_FIRST_PAUSE: Final = 0.2
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})


class TryAgain(NamedTuple):
    """A failed try that a retry may fix."""

    error: SourceError
    """Raised if there is no other try."""


def is_transient(status: int) -> bool:
    """Whether a response with this status is worth a retry."""
    return status in _TRANSIENT


def retry_after(value: str) -> float:
    """The seconds that a Retry-After header asks for; 0 if it is empty or invalid."""
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def backoff(number: int) -> float:
    """Seconds to wait after try `number`, counted from 0."""
    # Partly random, so that clients that failed together do not retry together.
    return _FIRST_PAUSE * float(2**number) * random.uniform(1.0, 1.5)


async def with_retries(
    what: str, attempt: Callable[[], Awaitable[T | TryAgain]], *, deadline: float = DEADLINE, tries: int = TRIES
) -> T:
    """The first result of `attempt` that is not TryAgain. An Unreachable that it raises counts as TryAgain.

    Raises Unreachable after `deadline` seconds, else the error of the last try. Cancelled: the current try is cancelled.
    """
    end = trio.current_time() + deadline
    error: SourceError | None = None
    for number in range(tries):
        try:
            with trio.fail_at(end):
                outcome = await attempt()
        except trio.TooSlowError:
            raise Unreachable(f"{what} did not answer within {deadline:g} s") from error
        except HeldOff:
            raise  # no retry can be in time
        except Unreachable as raised:
            outcome = TryAgain(raised)
        if not isinstance(outcome, TryAgain):
            return outcome
        error = outcome.error
        pause = backoff(number)
        if number == tries - 1 or trio.current_time() + pause >= end:
            break
        await trio.sleep(pause)
    assert error is not None
    raise error
