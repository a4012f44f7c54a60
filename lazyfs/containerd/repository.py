"""A repository that layers come from: its connections and its fetcher, which they share, and which of them shall come whole.

Like a layer it lives while something uses it, and a while longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from lazyfs.fetch.background import Wanted
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.source.protocol import ImageSource

_LINGER: Final = 30.0
"""Seconds for which an unused layer or repository stays: the next container of the image is the most probable one."""


class Uses:
    """How many use something, and since when nobody does."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = trio.Event()

    def change(self, by: int) -> None:
        """One more, or one less."""
        self.count += by
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until_unused(self) -> None:
        """Until nobody has used it for a while."""
        while True:
            while self.count:
                await self._changed.wait()
            with trio.move_on_after(_LINGER) as patience:
                while not self.count:
                    await self._changed.wait()
            if patience.cancelled_caught and not self.count:
                return


class LiveRepository:
    """Where the blobs of some layers are, and who fetches them."""

    def __init__(self, name: str, source: ImageSource) -> None:
        self.name = name
        self.source = source
        self.uses = Uses()
        self.fetcher: Fetcher | None = None
        self.ready = trio.Event()
        self.pulls: dict[str, Wanted] = {}
        """Layers that shall come whole, by name."""
        self.pulls_changed = trio.Event()
        self.trouble = ""

    @contextmanager
    def in_use(self) -> Iterator[LiveRepository]:
        """Around a request to it."""
        self.uses.change(+1)
        try:
            yield self
        finally:
            self.uses.change(-1)

    def pull(self, name: str, wanted: Wanted | None) -> None:
        """This layer shall come whole, or need not any more."""
        if wanted is not None:
            self.pulls[name] = wanted
        elif self.pulls.pop(name, None) is None:
            return  # the others are not begun anew for nothing
        self.pulls_changed.set()
        self.pulls_changed = trio.Event()
