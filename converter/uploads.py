"""Sends blobs to the destination while later layers are still being compressed.

Nothing is sent before `start`, which is called when the whole input has been found good: bad input leaves the
destination unchanged. Blobs that the destination has are not sent again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import trio

from lazyfs.errors import DigestMismatch
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import Descriptor
from lazyfs.layertar.spool import unnamed_file, write
from lazyfs.source.protocol import ImageSink, ImageSource

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 3
_STEP: Final = 1 << 20

Progress = Callable[[int], None]


class Uploads:
    """The blobs that must be at the destination before a manifest names them. Its tasks run in `nursery`."""

    def __init__(self, source: ImageSource, sink: ImageSink, nursery: trio.Nursery) -> None:
        self._source = source
        self._sink = sink
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._started = trio.Event()
        self._known: set[Digest] = set()

    def start(self) -> None:
        """Begin to send: the input is good."""
        self._started.set()

    def send(self, digest: Digest, size: int, file: IO[bytes], from_source: bool, progress: Progress) -> None:
        """Send `file` and close it afterwards. `from_source`: the source has the same blob."""
        if digest in self._known:
            file.close()
            return
        self._known.add(digest)
        self._nursery.start_soon(self._send, digest, size, file, from_source, progress)

    def send_bytes(self, data: bytes) -> Digest:
        """Send a small blob (a config)."""
        file = unnamed_file()
        write(file, data)
        digest = digest_of(data)
        self.send(digest, len(data), file, False, _ignore)
        return digest

    async def copy(self, blob: Descriptor) -> None:
        """Fetch and verify a blob of the source, and send it unchanged."""
        if blob.digest in self._known or await self._sink.has_blob(blob.digest, blob.size):
            return
        with ExitStack() as stack:
            file = stack.enter_context(unnamed_file())
            try:
                await self._fetch(blob, file)
            except DigestMismatch as error:
                _log.info("%s: %s: fetching it once more", self._source.name, error)
                self._source.distrust(blob.digest)
                await self._fetch(blob, file)
            stack.pop_all()
            self.send(blob.digest, blob.size, file, True, _ignore)

    async def _send(self, digest: Digest, size: int, file: IO[bytes], from_source: bool, progress: Progress) -> None:
        with file:
            await self._started.wait()
            async with self._limiter:
                if not await self._there(digest, size, from_source):
                    # The sink wants a path; an unnamed file has one for as long as it is open.
                    await self._sink.put_blob(digest, Path(f"/proc/self/fd/{file.fileno()}"), progress)

    async def _there(self, digest: Digest, size: int, from_source: bool) -> bool:
        if await self._sink.has_blob(digest, size):
            return True
        return from_source and await self._sink.mount_blob(digest, size, self._source)

    async def _fetch(self, blob: Descriptor, file: IO[bytes]) -> None:
        """Fill `file`, replacing its contents."""
        digest, size = blob.digest, blob.size
        file.seek(0)
        found = hashlib.sha256()
        if size:
            async with self._source.open_range(digest, size, 0, size, urls=blob.urls) as stream:
                for offset in range(0, size, _STEP):
                    data = await stream.receive_exactly(min(_STEP, size - offset))
                    found.update(data)
                    write(file, memoryview(data))
        if found.hexdigest() != digest[7:]:
            raise DigestMismatch(f"blob {digest} hashes to sha256:{found.hexdigest()}")


def _ignore(_count: int) -> None:
    pass
