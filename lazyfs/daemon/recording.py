"""The recordings of mounts: one for each mount that was ordered with one, by the mount's number."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import trio

from lazyfs.errors import LazyfsError, LocalError
from lazyfs.format.entry import Entry
from lazyfs.gate.record import Recorder
from lazyfs.image.image import Image
from lazyfs.image.layer import Layer
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)


class Recordings:
    """The active recordings. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._active: dict[int, tuple[Recorder, Path]] = {}

    def touched(self, number: int, name: str) -> None:
        """Record that a mount has looked up an object."""
        recording = self._active.get(number)
        if recording is not None:
            recording[0].touch(name)

    def begin(self, number: int, path: Path, image: Image, layers: tuple[Layer, ...]) -> None:
        """Start to record the mount `number`; the recording is written to `path` when it is unmounted."""
        self._active[number] = (Recorder(image, partial(_entries, self._store, layers)), path)

    async def end(self, number: int) -> None:
        """Write the recording of an unmounted mount, if it has one."""
        recording = self._active.pop(number, None)
        if recording is None:
            return
        recorder, path = recording
        try:
            await trio.to_thread.run_sync(recorder.write, path)
        except (LazyfsError, OSError) as error:
            _log.error("cannot write the record of a mount to %s: %s", path, error)

    async def end_all(self) -> None:
        """Write every recording, before the daemon exits."""
        for number in list(self._active):
            await self.end(number)


def _entries(store: Store, layers: tuple[Layer, ...]) -> list[tuple[Entry, ...]]:
    """The entries of mounted layers, whose TOCs stay in the store. Blocking. Raises LocalError."""
    found = []
    for layer in layers:
        data = store.document(layer.toc_digest)
        if data is None:
            raise LocalError(f"the TOC of layer {layer.digest} is missing from the store")
        found.append(layer.dialect.entries(data, layer.toc_offset, f"layer {layer.digest}", accepted=True))
    return found
