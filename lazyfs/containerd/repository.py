"""A repository that layers come from: its connections and its fetcher, which they share, and which of them shall come whole.

Like a layer it lives while something uses it, and a while longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from lazyfs.fetch.background import Wanted
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.live.uses import Uses
from lazyfs.source.protocol import ImageSource


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
        with self.uses.in_use():
            yield self

    def pull(self, name: str, wanted: Wanted | None) -> None:
        """This layer shall come whole, or need not any more."""
        if wanted is not None:
            self.pulls[name] = wanted
        elif self.pulls.pop(name, None) is None:
            return  # the others are not begun anew for nothing
        self.pulls_changed.set()
        self.pulls_changed = trio.Event()
