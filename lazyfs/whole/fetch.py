"""A layer's blob, fetched from its first byte to its last, verified, and unpacked to a tar on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from lazyfs.errors import LazyfsError, RangeIgnored
from lazyfs.format.manifest import Descriptor
from lazyfs.image.layer import Whole
from lazyfs.image.spool import Spool, unpack
from lazyfs.source.protocol import ByteStream, ImageSource
from lazyfs.whole.blob import RANGE, BlobReader


@asynccontextmanager
async def fetch_tar(
    source: ImageSource, blob: Descriptor, whole: Whole, folder: str, progress: Callable[[int], None]
) -> AsyncIterator[Spool]:
    """The tar in `blob`, spooled in `folder`: both its digest and its diff ID are what the image says.

    `progress` gets the count of blob bytes of each step, in a thread. Raises SourceError, InvalidInput, LocalError. Leaving it, or
    cancelled, gives the disk space back.
    """
    if blob.size > RANGE:
        with Spool(keep_blob=False, folder=folder) as spool:
            try:
                await _fetch_in_parallel(spool, source, blob, whole, progress)
            except RangeIgnored:
                pass  # known after one range: the server sends nothing but whole blobs
            else:
                yield spool
                return
    with Spool(keep_blob=False, folder=folder) as spool:
        if blob.size:
            async with source.open_range(blob.digest, blob.size, 0, blob.size) as stream:
                await _unpack(spool, stream, blob, whole, progress)
        else:
            await _unpack(spool, _Nothing(), blob, whole, progress)
        yield spool


async def _fetch_in_parallel(
    spool: Spool, source: ImageSource, blob: Descriptor, whole: Whole, progress: Callable[[int], None]
) -> None:
    failure: LazyfsError | None = None
    async with trio.open_nursery() as nursery:
        try:
            await _unpack(spool, BlobReader(source, blob, nursery), blob, whole, progress)
        except LazyfsError as error:
            failure = error  # a nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _unpack(spool: Spool, stream: ByteStream, blob: Descriptor, whole: Whole, progress: Callable[[int], None]) -> None:
    def pull(count: int) -> bytes | bytearray | memoryview:
        return trio.from_thread.run(stream.receive_exactly, count)

    def checked(count: int) -> None:
        trio.from_thread.check_cancelled()
        progress(count)

    await trio.to_thread.run_sync(partial(unpack, spool, pull, blob, whole.diff_id, checked))


class _Nothing:
    """The stream of a blob without bytes, which no range can be asked of."""

    async def receive_exactly(self, count: int) -> bytes:
        raise AssertionError("there is nothing to receive")
