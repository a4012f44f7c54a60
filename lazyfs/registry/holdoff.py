"""Holdoffs: a 429 or 503 response with Retry-After holds back every request to that host.

All clients of a process share one record, because lazyfsd has a client for each repository, and many repositories share a
registry. It is kept by origin (scheme, host and port): a busy store behind signed URLs does not stop requests to the registry.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from lazyfs.errors import HeldOff
from lazyfs.registry.retry import retry_after
from lazyfs.registry.url import Url

_log = logging.getLogger(__name__)

MAX_HOLDOFF: Final = 60.0
"""Seconds. A host that asks for a longer pause is asked again after this time."""
_SPREAD: Final = 0.2
"""Waiting requests start again spread over this fraction of the pause, so that the host does not get them all at once."""
_MAX_HOSTS: Final = 256
"""Redirects can lead to any number of hosts. The oldest record is dropped first."""

_PAUSES: Final = 2
T = TypeVar("T")
_Origin = tuple[str, str, int]


class Holdoffs:
    """For each host that asked for a pause, when it may be asked again."""

    def __init__(self) -> None:
        self._until: dict[_Origin, float] = {}
        self._status: dict[_Origin, int] = {}
        """Hosts that ever asked for a pause: each is logged once."""

    def note(self, what: str, url: Url, status: int, value: str) -> None:
        """Record an answer of `url`'s host: its status, and the value of its Retry-After header (empty: none)."""
        if status not in {429, 503} or not (seconds := min(retry_after(value), MAX_HOLDOFF)):
            return
        if url.origin not in self._status:
            _log.warning("%s: %s answered %d: no request to it for %.0f s", what, url.authority, status, seconds)
        for record in (self._until, self._status):
            if len(record) >= _MAX_HOSTS and url.origin not in record:
                del record[next(iter(record))]
        self._status[url.origin] = status
        self._until[url.origin] = max(self._until.get(url.origin, 0.0), trio.current_time() + seconds)

    def applies_to(self, url: Url) -> bool:
        """Whether `wait` must be called before a request to `url`. Costs almost nothing if there are no pauses."""
        return bool(self._until) and url.origin in self._until

    async def wait(self, what: str, url: Url) -> None:
        """Wait until `url`'s host may be asked for `what`. A checkpoint only if there is something to wait for.

        Raises HeldOff at once if the caller's deadline (that of the cancel scopes around it) ends before that. Cancelled:
        nothing has changed.
        """
        while (until := self._until.get(url.origin)) is not None:
            now = trio.current_time()
            if until <= now:
                del self._until[url.origin]
                return
            deadline = trio.current_effective_deadline()
            if deadline <= until:
                status = self._status.get(url.origin, 503)
                raise HeldOff(f"{what}: {url.authority} answers {status}, and may be asked again in {until - now:.0f} s", until)
            late = until + random.uniform(0.0, _SPREAD) * (until - now)
            await trio.sleep_until(late if late < deadline else until)


async def with_holdoffs(ask: Callable[[], Awaitable[T]]) -> T:
    """The result of `ask`. If a pause is longer than one request waits, wait for it, unless the caller's deadline ends before.

    Raises as `ask`, and HeldOff for the third pause in a row. Cancelled: `ask` is.
    """
    for _ in range(_PAUSES):
        try:
            return await ask()
        except HeldOff as held:
            if trio.current_effective_deadline() <= held.until:
                raise
            await trio.sleep_until(held.until)  # `wait` spreads the requests that come then
    return await ask()


_of_this_run: Final = trio.lowlevel.RunVar[Holdoffs]("holdoffs")


def shared_holdoffs() -> Holdoffs:
    """The record that everything in this trio run shares."""
    try:
        return _of_this_run.get()
    except LookupError:
        found = Holdoffs()
        _of_this_run.set(found)
        return found
