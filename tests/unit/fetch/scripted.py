"""A scripted source: serves bytes, records requests, waits and fails on command."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import HeldOff, RangeIgnored, Unreachable
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.member import compress_member
from lazyfs.source.protocol import Document

RANDOM = random.Random(1)
FILES = [(b"f%04d" % number, RANDOM.randbytes(200 + 37 * number % 4000)) for number in range(400)]


async def read_piece(fetcher: Fetcher, layer: LayerBlob, number: int) -> bytes:
    """The whole chunk of a layer's n-th piece."""
    piece = layer.pieces[number]
    return bytes(await fetcher.read(layer, piece, 0, piece.chunk.size))


def make_layer(files: Iterable[tuple[bytes, bytes]], chunk_size: int = 1 << 20) -> tuple[LayerBlob, bytes]:
    """A layer of files (name, content), one member per chunk, and its blob."""
    blob = bytearray()
    parts: list[tuple[bytes, list[tuple[int, bytes, int, int]]]] = []
    for name, content in files:
        chunks = []
        for offset in range(0, len(content), chunk_size):
            data = content[offset : offset + chunk_size]
            start = len(blob)
            blob += compress_member(data + b"padding and the next header")
            chunks.append((offset, data, start, len(blob)))
        parts.append((name, chunks))
    entries = [
        Entry(
            name,
            "reg",
            size=sum(len(data) for _, data, _, _ in chunks),
            chunks=tuple(
                Chunk(offset, len(data), hashlib.sha256(data).digest(), start, 0, end) for offset, data, start, end in chunks
            ),
        )
        for name, chunks in parts
    ]
    end = len(blob)
    blob += b"the TOC"
    return LayerBlob(digest_of(bytes(blob)), len(blob), end, entries), bytes(blob)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition. That all tasks are blocked says nothing about threads, which may be slow on a busy machine."""
    with trio.fail_after(30):
        while not condition():
            await trio.lowlevel.checkpoint()


class ScriptedSource:
    """An ImageSource for the given blobs."""

    name = authority = "scripted:"

    def __init__(self, *blobs: bytes) -> None:
        self.blobs = {digest_of(blob): blob for blob in blobs}
        self.ranges: list[tuple[int, int]] = []
        """The requested ranges, in order."""
        self.held_off_until = -math.inf
        """When it may be asked again."""
        self.streams: list[_Stream] = []
        self.gate = trio.Event()
        """Ranges wait for it before their first byte."""
        self.gate.set()
        self.fails = 0
        """How many of the next ranges break off."""
        self.rate: int | None = None
        """Bytes per second of ranges opened from now on; None: all at once."""
        self.lies = 0
        """How many of the next ranges deliver other bytes."""
        self.sent = 0
        """Bytes of all ranges so far."""
        self.ignores_ranges = False
        self.distrusted: list[Digest] = []
        """Blobs whose bytes were found wrong."""
        self.connected = 0
        """Connections that were opened ahead of ranges."""

    async def document(self, reference: str) -> Document:
        raise NotImplementedError

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        raise NotImplementedError

    async def connect_ahead(self, count: int) -> None:
        self.connected += count

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[_Stream]:
        self.ranges.append((start, end))
        await self.gate.wait()
        if trio.current_time() < self.held_off_until:
            raise HeldOff("the host may be asked again in a while", self.held_off_until)
        if self.ignores_ranges and (start, end) != (0, size):
            raise RangeIgnored("a 200 to a range")
        failing, lying = self.fails > 0, self.lies > 0
        self.fails -= failing
        self.lies -= lying
        data = self.blobs[digest][start:end]
        self.streams.append(_Stream(self, bytes(byte ^ 1 for byte in data) if lying else data, failing, self.rate))
        yield self.streams[-1]

    def distrust(self, digest: Digest) -> None:
        self.distrusted.append(digest)

    async def aclose(self) -> None:
        """Nothing to close."""


class _Stream:
    def __init__(self, source: ScriptedSource, data: bytes, failing: bool, rate: int | None) -> None:
        self._source = source
        self._data = data
        self._failing = failing
        self.rate = rate
        self.received = 0

    async def receive_exactly(self, count: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._failing:
            raise Unreachable("the source has gone away")
        data, self._data = self._data[:count], self._data[count:]
        assert len(data) == count
        left = count
        while left:
            if self.rate is not None:
                await trio.sleep(1)
            step = min(self.rate or left, left)
            left -= step
            self.received += step
            self._source.sent += step
        return data


async def pass_time(clock: MockClock, fetcher: Fetcher, seconds: float) -> None:
    """Let virtual time pass, second by second. Threads take none of it."""
    for _ in range(int(seconds)):
        await settle(fetcher)
        clock.jump(1)
    await settle(fetcher)


async def settle(fetcher: Fetcher) -> None:
    """Wait until all tasks wait for the source or for time to pass."""
    limiters = (fetcher._shared.readers, fetcher._shared.unpackers)
    with trio.fail_after(1e6):
        while True:
            await wait_all_tasks_blocked()
            if not any(limiter.borrowed_tokens for limiter in limiters):
                return


def piece_of(layer: LayerBlob, number: int) -> Piece:
    """The layer's n-th piece."""
    return layer.pieces[number]
