"""Patience: what may pass is tried again, with growing pauses, under one deadline for everything.

What may pass is a connection that fails or breaks off, 429, and the 5xx of a server in trouble. All else is said at
once. A registry that is away must not hold a user for the whole deadline: the number of tries is bounded as well.
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
"""Seconds from asking to the first byte of the answer: tokens, redirects and tries included."""
TRIES: Final = 5
PROMPTLY: Final = 5.0
"""Seconds for a body that nobody needs, that of a refusal or of an upload's answer: where it breaks off or does not come, the head counts."""
T = TypeVar("T")
_FIRST_PAUSE: Final = 0.2
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})


class TryAgain(NamedTuple):
    """A failed try that another one may mend."""

    error: SourceError
    """What to raise when there is no other try."""


def is_transient(status: int) -> bool:
    """Whether an answer of this status is worth another try."""
    return status in _TRANSIENT


def retry_after(value: str) -> float:
    """The seconds that a Retry-After header asks for; 0 for none, or one that cannot be read."""
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def backoff(number: int) -> float:
    """Seconds to wait after try `number`, the first being 0, before the next one."""
    # A part of it is chance, so that clients which failed together do not come back together.
    return _FIRST_PAUSE * float(2**number) * random.uniform(1.0, 1.5)


async def with_retries(
    what: str, attempt: Callable[[], Awaitable[T | TryAgain]], *, deadline: float = DEADLINE, tries: int = TRIES
) -> T:
    """What `attempt` returns that is not a TryAgain. An Unreachable that it raises counts as a TryAgain.

    Raises Unreachable after `deadline` seconds, else the last try's error. Cancelled: the try under way is cancelled.
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
            raise  # it is known that no try of ours will be in time
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
