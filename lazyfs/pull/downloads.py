"""Downloads blobs into containerd, a few at a time, each once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor
from lazyfs.pull.content import Content
from lazyfs.pull.labels import source_label
from lazyfs.source.protocol import ImageSource
from lazyfs.source.reference import Reference

_AT_A_TIME: Final = 3
"""As in containerd's own client."""

Progress = Callable[[Descriptor, int], None]
"""Called with the number of bytes of a blob that have arrived."""


class Downloads:
    """The downloads of one pull. They run in `nursery`; a failure cancels it."""

    def __init__(
        self, source: ImageSource, reference: Reference, content: Content, nursery: trio.Nursery, progress: Progress
    ) -> None:
        self._source = source
        self._reference = reference
        self._content = content
        self._nursery = nursery
        self._progress = progress
        self._limiter = trio.CapacityLimiter(_AT_A_TIME)
        self._started: dict[Digest, trio.Event] = {}

    def begin(self, blob: Descriptor) -> trio.Event:
        """Queue a blob. The event is set when it has arrived."""
        done = self._started.get(blob.digest)
        if done is None:
            done = self._started[blob.digest] = trio.Event()
            self._nursery.start_soon(self._download, blob, done)
        return done

    async def _download(self, blob: Descriptor, done: trio.Event) -> None:
        async with self._limiter:
            labels = partial(source_label, self._reference)
            await self._content.fetch(self._source, blob, labels, partial(self._progress, blob))
        done.set()
