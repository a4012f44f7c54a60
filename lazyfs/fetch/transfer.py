"""A transfer: one range request for the bytes of a run, and their unpacking.

While the next bytes arrive, the last ones are inflated, verified and kept in a worker thread. The number of such jobs over all
runs is limited, so that a slow disk or CPU slows down the senders instead of filling memory. (Small runs do not count as jobs,
because the number of runs is limited.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, NamedTuple

import trio

from lazyfs.errors import LazyfsError
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.fetch.progress import Progress
from lazyfs.fetch.shared import Shared
from lazyfs.fetch.unpack import Packed, Unpacked, unpack
from lazyfs.source.protocol import RangeStream

_BATCH: Final = 512 << 10
"""Compressed bytes per call in a thread: small files share the cost of a call, large chunks go alone."""
_SMALL: Final = 256 << 10
"""Inflated bytes up to which a run is unpacked in one call together with others."""
_SKIP: Final = 1 << 20


class Batch(NamedTuple):
    """Pieces whose members are contiguous: blob bytes `[start, end)`."""

    start: int
    end: int
    pieces: list[Piece]


class Transfer(NamedTuple):
    """`on_piece` is called for every piece on the event loop. `pause` is awaited before each batch, and returns whether to go
    on."""

    shared: Shared
    layer: LayerBlob
    progress: Progress
    on_piece: Callable[[Unpacked], None]
    pause: Callable[[], Awaitable[bool]]
    deadline: float
    """Until when to wait for a host that asks for a pause."""

    async def fetch(self, pieces: Sequence[Piece], *, whole: bool = False) -> None:
        """Fetch `pieces`, which are in blob order. `whole`: request the whole blob, and skip what is not wanted.

        Raises SourceError if the source failed; what had arrived is kept and was passed to `on_piece`. Cancelled: the same.
        """
        batches = cut(pieces)
        start, end = (0, self.layer.size) if whole else (batches[0].start, batches[-1].end)
        self.shared.counts["requests"] += 1
        try:
            if len(batches) == 1:
                await self._fetch_batch(batches[0], start, end)
            else:
                await self._fetch_batches(batches, start, end)
        finally:
            self.progress.end_stream()

    async def _fetch_batches(self, batches: Sequence[Batch], start: int, end: int) -> None:
        failure: LazyfsError | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with self._open(start, end) as stream:
                    position = start
                    for batch in batches:
                        if not await self.pause():
                            break
                        data = await self._receive(stream, position, batch)
                        position = batch.end
                        self.progress.pause()
                        await self.shared.jobs.acquire()
                        nursery.start_soon(self._unpack, batch, data)
            except LazyfsError as error:
                failure = error  # raised below, once the jobs of what did arrive are done
        if failure is not None:
            raise failure

    async def _fetch_batch(self, batch: Batch, start: int, end: int) -> None:
        """Fetch a run of one batch: the usual miss among many readers, who wait for the event loop. So it has no task of its
        own, and the connection is released before its bytes are unpacked."""
        async with self._open(start, end) as stream:
            if not await self.pause():
                return
            data = await self._receive(stream, start, batch)
            self.progress.end_stream()
        # Inflated data stays in memory until the whole call is done, and may be far more than what is wanted of it.
        if sum(piece.chunk.inner + piece.chunk.size for piece in batch.pieces) <= _SMALL:
            for result in await self.shared.small.submit(self._packed(batch, data)):
                self.on_piece(result)
        else:
            await self.shared.jobs.acquire()
            await self._unpack(batch, data)

    def _open(self, start: int, end: int) -> AbstractAsyncContextManager[RangeStream]:
        layer = self.layer
        return self.shared.source.open_range(layer.digest, layer.size, start, end, urls=layer.urls, deadline=self.deadline)

    async def _receive(self, stream: RangeStream, position: int, batch: Batch) -> bytes | bytearray | memoryview:
        self.progress.expect_bytes(stream)
        await self._skip(stream, batch.start - position)
        data = await stream.receive_exactly(batch.end - batch.start)
        self.shared.counts["received"] += len(data)
        return data

    def _packed(self, batch: Batch, data: bytes | bytearray | memoryview) -> Packed:
        return Packed(batch.start, data, batch.pieces, f"layer {self.layer.digest} of {self.shared.image}", self.layer.dialect)

    async def _skip(self, stream: RangeStream, count: int) -> None:
        while count > 0:
            step = min(count, _SKIP)
            await stream.receive_exactly(step)
            self.shared.counts["received"] += step
            count -= step

    async def _unpack(self, batch: Batch, data: bytes | bytearray | memoryview) -> None:
        try:
            work = partial(unpack, self.shared.store, self._packed(batch, data))
            for result in await trio.to_thread.run_sync(work, limiter=self.shared.unpackers):
                self.on_piece(result)
        finally:
            self.shared.jobs.release()


def cut(pieces: Sequence[Piece]) -> list[Batch]:
    """Batches for the threads. The first member goes alone, because a reader waits for it."""
    batches: list[Batch] = []
    for piece in pieces:
        chunk = piece.chunk
        last = batches[-1] if batches else None
        if last is not None and last.pieces[-1].chunk.member == chunk.member:
            last.pieces.append(piece)
            batches[-1] = last._replace(end=max(last.end, chunk.member_end))
        elif last is not None and len(batches) > 1 and last.end == chunk.member and chunk.member_end - last.start <= _BATCH:
            last.pieces.append(piece)
            batches[-1] = last._replace(end=chunk.member_end)
        else:
            batches.append(Batch(chunk.member, chunk.member_end, [piece]))
    return batches
