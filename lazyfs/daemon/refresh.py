"""Letting overlays look again.

overlayfs keeps where it found a file's data for as long as it keeps its inode. What was answered with an entry of the gate would
be read through FUSE for ever, although the object has long become whole; what was evicted would keep its space. A reconfigure of
the overlay drops its unused dentries: the next open looks anew, and finds objects/. Files held open stay where they are.
18 ms for 10,000 files, 0.1 ms where there is nothing to drop; so once a second at most, and only where something has changed.

So a file that was held while its object became whole is still read through the gate when it has been let go. Nobody tells of that;
but its next open passes the gate, which notes it, and every now and then the overlays look again for the sake of those.
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
"""Of the time, one part in so many goes into looking for what has become whole."""


class Refresher:
    """Watches over what went through the gate. One task."""

    def __init__(self, store: Store, gate: Gate, catalog: Catalog, overlays_on: Callable[[set[str]], list[Path]]) -> None:
        """`overlays_on`: where the overlays of images are mounted."""
        self._store = store
        self._gate = gate
        self._catalog = catalog
        self._overlays_on = overlays_on
        self.rounds = 0
        """How often overlays were made to look again."""

    async def run(self) -> None:
        """Until cancelled."""
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
            # A chown -R has ten thousand names looked for that nobody will read.
            pause = max(_PAUSE, (trio.current_time() - began) * _SHARE)

    async def refresh(self, names: Sequence[str]) -> None:
        """Make the overlays that may hold one of these objects drop what nobody uses."""
        images = await trio.to_thread.run_sync(self._images_of, names)
        self.rounds += 1
        await trio.to_thread.run_sync(_reconfigure, self._overlays_on(images))

    async def _forget_unmounted(self) -> None:
        """Names that no mounted image has any more."""
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
            # It is gone, or hidden under another mount: then its files are read through the gate for a while longer.
            _log.info("cannot refresh the overlay at %s: %s", directory, error)
