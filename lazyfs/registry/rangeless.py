"""Blobs without ranges: the server refuses requests for them with a Range header, and may answer one without.

Some registries answer range requests with 403 (a signature that does not cover the header), 416 or 501. The same statuses also
mean real errors, so the blob is requested once without a range, and the result is remembered: that it is refused as a whole, as
long as the client lives; that only its ranges are refused, for ten minutes, because a client of lazyfsd may live for weeks, and
the cause may go away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from lazyfs.errors import RangeIgnored, SourceError, Unreachable
from lazyfs.format.digest import Digest

_MAX_BLOBS: Final = 4096
_MEMORY: Final = 600.0
"""Seconds for which a blob is requested without ranges."""
_PLAIN: Final = frozenset({401, 404, 407, 408, 410, 429, 451})
"""Statuses that do not depend on the Range header."""


def may_refuse_the_range(status: int) -> bool:
    """Whether this status may be about the Range header instead of the blob."""
    return (400 <= status < 500 and status not in _PLAIN) or status == 501


class Rangeless:
    """What is known about the blobs of one repository."""

    def __init__(self) -> None:
        self._is_served: dict[Digest, bool] = {}
        """For blobs whose ranges were refused: whether the whole blob is served."""
        self._until: dict[Digest, float] = {}
        """When ranges of these blobs are tried again."""
        self._trials: dict[Digest, trio.Lock] = {}

    def includes(self, digest: Digest) -> bool:
        """Whether this blob has to be requested without a range."""
        if not self._is_served or not self._is_served.get(digest, False):
            return False
        if trio.current_time() < self._until[digest]:
            return True
        self._forget(digest)
        return False

    @asynccontextmanager
    async def trial(self, digest: Digest, refusal: SourceError) -> AsyncIterator[None]:
        """Surrounds a request for a whole blob whose range was answered with `refusal`.

        Raises `refusal` if the whole blob was refused before. One caller at a time tries; the others wait for its result. A
        failure that says nothing about the blob (Unreachable) leaves the try to the next caller. Cancelled: the same.
        """
        lock = self._trials.setdefault(digest, trio.Lock())
        async with lock:
            served = self._is_served.get(digest)
            if served is None:
                try:
                    yield
                except Unreachable:
                    raise
                except RangeIgnored:
                    self._record(digest, is_served=True)
                    raise
                except SourceError:
                    self._record(digest, is_served=False)
                    raise
                self._record(digest, is_served=True)
                return
        if not served:
            raise refusal
        yield

    def _record(self, digest: Digest, *, is_served: bool) -> None:
        self._trials.pop(digest, None)
        if len(self._is_served) >= _MAX_BLOBS:
            self._forget(next(iter(self._is_served)))
        self._is_served[digest] = is_served
        self._until[digest] = trio.current_time() + _MEMORY

    def _forget(self, digest: Digest) -> None:
        del self._is_served[digest], self._until[digest]
