"""Refreshes overlays, so that they look up their files' data again.

overlayfs caches where it found a file's data as long as it caches the inode. Without a refresh, a file that was answered with an entry of
the gate would be read through FUSE for ever, although its object is complete, and an evicted object would keep its space. A reconfigure of
the overlay drops its unused dentries: the next open looks up the data again and finds objects/. Open files keep their data. It costs 18 ms
for 10,000 files and 0.1 ms if there is nothing to drop; so it runs at most once a second, and only after changes.

A file that was open when its object became complete is still read through the gate after it was closed, and no event shows the close. But
its next open passes through the gate, which notes it, and from time to time the overlays are refreshed for such files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from lazyfs.gate.catalog import Catalog
from lazyfs.gate.gate import Gate
from lazyfs.gate.inode import inode_of
from lazyfs.native.stack import reconfigure
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

_PAUSE: Final = 1.0
_HELD_PAUSE: Final = 3.0
_SHARE: Final = 50
"""The check for completed objects takes at most one part in so many of the time."""


class Refresher:
    """Refreshes overlays for files that were answered by the gate. One task."""

    def __init__(self, store: Store, gate: Gate, catalog: Catalog, overlays_on: Callable[[set[str]], list[Path]]) -> None:
        """`overlays_on`: returns the mount points of overlays on any of these live layers."""
        self._store = store
        self._gate = gate
        self._catalog = catalog
        self._overlays_on = overlays_on
        self.rounds = 0
        """How often overlays were refreshed."""

    async def run(self) -> None:
        """Refresh for completed objects until cancelled."""
        pause = _PAUSE
        patience = trio.current_time() + _HELD_PAUSE
        while True:
            await trio.sleep(pause)
            began = trio.current_time()
            names = set(self._gate.served)
            if began >= patience:
                patience = began + _HELD_PAUSE
                await self._forget_unmounted()
                names |= self._gate.reopened
            completed = await trio.to_thread.run_sync(self._completed, names)
            if completed:
                self._gate.served.difference_update(completed)
                self._gate.reopened.difference_update(completed)
                await self.refresh(completed)
            # A chown -R can add ten thousand names that are never read.
            pause = max(_PAUSE, (trio.current_time() - began) * _SHARE)

    async def refresh(self, names: Sequence[str]) -> None:
        """Refresh the overlays that may have one of these objects."""
        images = await trio.to_thread.run_sync(self._images_of, names)
        self.rounds += 1
        await trio.to_thread.run_sync(_reconfigure, self._overlays_on(images))

    async def _forget_unmounted(self) -> None:
        """Forget names that no mounted image has any more."""
        for names in (self._gate.served, self._gate.reopened):
            names.difference_update(await trio.to_thread.run_sync(self._unmounted, tuple(names)))

    def _completed(self, names: Iterable[str]) -> list[str]:
        objects = self._store.directory.objects
        return [name for name in names if os.path.exists(objects + name)]

    def _unmounted(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._catalog]

    def _images_of(self, names: Iterable[str]) -> set[str]:
        return self._catalog.images_with(map(inode_of, names))


def _reconfigure(directories: Sequence[Path]) -> None:
    for directory in directories:
        try:
            reconfigure(directory)
        except OSError as error:
            # It is unmounted, or hidden under another mount: then its files are read through the gate for longer.
            _log.info("cannot refresh the overlay at %s: %s", directory, error)
