"""Blobs of which a server serves no ranges: it refuses a request that has a Range header, and may answer one that has none.

Some registries answer ranges with 403 (a signature that does not cover the header), 416 or 501. The same statuses mean a real refusal
elsewhere, so a blob is asked for once without a range, and what came of it is remembered: that it is refused as long as the session lives, that
its ranges are for ten minutes, because a session of lazyfsd may live for weeks, and a proxy may have come to its senses.
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
"""Seconds for which a blob is asked for without ranges."""
_PLAIN: Final = frozenset({401, 404, 407, 408, 410, 429, 451})
"""What does not depend on the Range header."""


def may_refuse_the_range(status: int) -> bool:
    """Whether an answer of this status may mean the Range header, and not the blob."""
    return (400 <= status < 500 and status not in _PLAIN) or status == 501


class Rangeless:
    """What is known of the blobs of one repository."""

    def __init__(self) -> None:
        self._is_served: dict[Digest, bool] = {}
        """Of blobs whose ranges were refused: whether all of it is served."""
        self._until: dict[Digest, float] = {}
        """When the ranges of those that are will be tried again."""
        self._trials: dict[Digest, trio.Lock] = {}

    def includes(self, digest: Digest) -> bool:
        """Whether this blob is to be asked for without a range."""
        if not self._is_served or not self._is_served.get(digest, False):
            return False
        if trio.current_time() < self._until[digest]:
            return True
        self._forget(digest)
        return False

    @asynccontextmanager
    async def trial(self, digest: Digest, refusal: SourceError) -> AsyncIterator[None]:
        """Around a request for all of a blob whose range was answered with `refusal`.

        Raises `refusal` where that was tried before in vain. One caller at a time tries; the others wait for what comes of it. An answer
        that says nothing about the blob (Unreachable) leaves it to the next. Cancelled: the same.
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
