"""Which of several ways to an object is taken, where more than one mounted image has it.

Images share files, and so depend on each other's registries, unless care is taken: one that fails is passed over for the next, and
so is one whose bytes are not what they should be. One that is silent is not waited for while another may answer, and for a
while the others are asked first. Silent is not slow: a source from which anything at all arrives is waited for, or two images on
a slow link would fetch everything twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

import trio

from lazyfs.errors import LazyfsError
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.gate.catalog import Supply

_MEMORY: Final = 30.0
"""Seconds for which a silent source is asked last."""
T = TypeVar("T")


class Choice:
    """Takes one way after the other, and remembers who was silent."""

    def __init__(self) -> None:
        self._silent: WeakKeyDictionary[Fetcher, float] = WeakKeyDictionary()

    async def take(self, supplies: Sequence[Supply], work: Callable[[Supply], Awaitable[T]], hope: float) -> T:
        """What `work` makes of the first supply that it can be made of, each given `hope` seconds of silence while there are others.

        `work` can be cancelled and begun again at no cost. Raises the first LazyfsError when there is no other way left.
        """
        failure: LazyfsError | None = None
        ways = deque((supply, False) for supply in self._in_order(supplies))
        while ways:
            supply, was_silent = ways.popleft()
            try:
                while True:
                    before = supply.fetcher.statistics().received
                    with trio.move_on_after(float("inf") if was_silent or not ways else hope):
                        return await work(supply)
                    if supply.fetcher.statistics().received == before:
                        break
            except LazyfsError as error:
                failure = failure or error
            else:
                self._silent[supply.fetcher] = trio.current_time()
                ways.append((supply, True))
        assert failure is not None
        raise failure

    def _in_order(self, supplies: Sequence[Supply]) -> Sequence[Supply]:
        if len(supplies) < 2 or not self._silent:
            return supplies
        since = trio.current_time() - _MEMORY
        return sorted(supplies, key=lambda supply: self._silent.get(supply.fetcher, since) > since)
