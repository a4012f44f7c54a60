"""Fetches a layer's whole blob, verifies it, and unpacks it to a tar on disk.

What arrives is kept as a partial blob (store/partial_blobs.py) until the tar has been used. The next attempt unpacks it, which also
hashes it, and fetches only the rest. Wrong bytes are fetched once more from the start: the disk or the connection may be at fault. A
layer that needs more memory than it gets while it arrives is unpacked from the partial blob once that is available (format/budget.py).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Final

import trio

from lazyfs.eager.blob import BlobReader
from lazyfs.errors import DigestMismatch, InvalidInput, LazyfsError, LocalError, StoreFull
from lazyfs.format.budget import parsing_budget
from lazyfs.format.manifest import Descriptor
from lazyfs.image.layer import Whole
from lazyfs.layertar.spool import LARGEST_WINDOW, NeedsMore, Spool, unpack
from lazyfs.source.protocol import ImageSource
from lazyfs.store.partial_blobs import PartialBlob
from lazyfs.store.store import Store

_log = logging.getLogger(__name__)

_WINDOW: Final = 1 << 20
Count = Callable[[int], None]
"""Called with a number of bytes, in a thread."""


def _ignore(_: int) -> None:
    """Count nothing."""


@asynccontextmanager
async def fetch_tar(
    source: ImageSource,
    blob: Descriptor,
    whole: Whole,
    store: Store,
    progress: Count,
    *,
    received: Count = _ignore,
    keep: bool,
) -> AsyncIterator[Spool]:
    """The tar of `blob`, spooled in the store. Both its digest and its diff ID are the image's.

    `progress` gets the count of blob bytes of each step, `received` of those that came from the source. With `keep`, which needs the
    layer lock, bytes that arrive are kept for the next attempt. Raises SourceError, InvalidInput, LocalError. The partial blob is removed
    on success; cancelled, or when the source fails, it stays.
    """
    with _part(store, blob, keep=keep) as part:
        download = _Download(source, blob, whole, part, progress, received)
        try:
            is_right = False
            while not is_right:
                with Spool(keep_blob=False, folder=store.directory.temporary) as spool:
                    is_right = await download.run(spool)
                    if is_right:
                        yield spool
        except (InvalidInput, StoreFull):
            # It would fail again; or the disk is full, and the partial blob is the first to go.
            await _remove(part)
            raise
        await _remove(part)


class _Download:
    """One blob being fetched into a spool."""

    def __init__(
        self, source: ImageSource, blob: Descriptor, whole: Whole, part: PartialBlob | None, progress: Count, received: Count
    ) -> None:
        self._source = source
        self._blob = blob
        self._whole = whole
        self._part = part
        self._progress = progress
        self._received = received
        self._counted = 0
        self._may_repeat = True
        self._careful = True

    async def run(self, spool: Spool) -> bool:
        """Fill `spool`. Returns False, once for each reason, if the bytes were wrong or need more memory: the caller runs it again.

        Raises SourceError, InvalidInput, LocalError.
        """
        resumed = self._part is not None and self._part.size > 0
        failure: LazyfsError | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with nullcontext() if self._careful else parsing_budget().hold(LARGEST_WINDOW):
                    await self._unpack(spool, nursery)
            except LazyfsError as error:
                failure = error  # a nursery would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is None:
            return True
        if isinstance(failure, NeedsMore):
            if self._part is None:  # the budget is shared by all layers: not to be held while waiting for a registry
                raise LocalError(
                    f"{failure.message}. To unpack it would need its blob in the store, which cannot keep it"
                ) from None
            self._careful = False
            self._start_over()
            return False
        is_doubtful = isinstance(failure, DigestMismatch) or (resumed and isinstance(failure, InvalidInput))
        if not (self._may_repeat and is_doubtful) or await trio.to_thread.run_sync(self._has_right_bytes):
            raise failure
        _log.warning("%s; fetching it once more", failure)
        self._may_repeat = False
        self._source.distrust(self._blob.digest)
        if self._part is not None:
            self._keep(self._part.clear)
        self._start_over()
        return False

    def _start_over(self) -> None:
        self._progress(-self._counted)
        self._counted = 0

    async def _unpack(self, spool: Spool, nursery: trio.Nursery) -> None:
        start = self._part.size if self._part is not None else 0
        reader = BlobReader(self._source, self._blob, nursery, start)
        position = 0

        def pull(count: int) -> bytes:
            nonlocal position
            pieces: list[bytes | memoryview] = []
            while count:
                piece = self._kept(position, min(count, start - position)) if position < start else self._fetched(reader, count)
                pieces.append(piece)
                position += len(piece)
                count -= len(piece)
            return b"".join(pieces)

        def checked(count: int) -> None:
            trio.from_thread.check_cancelled()
            self._counted += count
            self._progress(count)

        work = partial(unpack, spool, pull, self._blob, self._whole.diff_id, checked, careful=self._careful)
        # A thread of its own: it waits for the registry, and slow ones must not use up the threads of others.
        await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1))

    def _kept(self, position: int, count: int) -> bytes:
        """Bytes from an earlier attempt. In a thread."""
        try:
            data = self._part.read(position, count) if self._part is not None else b""
        except OSError as error:
            raise DigestMismatch(f"the stored part of layer {self._blob.digest} cannot be read: {error.strerror}") from error
        if not data:
            raise DigestMismatch(f"the stored part of layer {self._blob.digest} was truncated")
        return data

    def _fetched(self, reader: BlobReader, count: int) -> memoryview:
        """The next bytes from the source, after keeping them. In a thread."""
        data = trio.from_thread.run(reader.receive_some, count)
        self._received(len(data))
        if self._part is not None:
            self._keep(partial(self._part.append, data))
        return data

    def _keep(self, change: Callable[[], None]) -> None:
        """Change the partial blob. If the disk refuses, it is given up, and the layer is fetched without it."""
        assert self._part is not None
        try:
            change()
        except OSError as error:
            _log.info("cannot store layer %s while it arrives: %s", self._blob.digest, error.strerror)
            with suppress(OSError):
                self._part.clear()  # what it holds has been unpacked: its space is needed
            self._part = None

    def _has_right_bytes(self) -> bool:
        """Whether the partial blob is complete and right: any other fault is then one of the image."""
        part = self._part
        if part is None or part.size < self._blob.size:
            return False
        hashed = hashlib.sha256()
        with suppress(OSError):
            for offset in range(0, part.size, _WINDOW):
                hashed.update(part.read(offset, _WINDOW))
        return hashed.hexdigest() == self._blob.digest[7:]


@contextmanager
def _part(store: Store, blob: Descriptor, *, keep: bool) -> Iterator[PartialBlob | None]:
    """The partial blob; None if it is not to be kept, or cannot be."""
    with ExitStack() as stack:
        part = None
        if keep and blob.size:
            try:
                part = stack.enter_context(store.partial_blobs.open(blob.digest, blob.size))
            except LocalError as error:
                _log.info("cannot store layer %s while it arrives: %s", blob.digest, error)
        yield part


async def _remove(part: PartialBlob | None) -> None:
    if part is not None:
        with trio.CancelScope(shield=True), suppress(OSError):
            await trio.to_thread.run_sync(part.remove)
