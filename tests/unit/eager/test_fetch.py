"""A blob that is kept while it arrives: what comes next asks for the rest, and wrong bytes are fetched once more."""

from __future__ import annotations

import gzip
import math
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import zstandard

from lazyfs.eager import blob as whole_blob
from lazyfs.eager.fetch import fetch_tar
from lazyfs.errors import DigestMismatch, InvalidInput, StoreFull, Unreachable
from lazyfs.format.budget import PARSING, parsing_budget
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from lazyfs.image.layer import Whole
from lazyfs.store.partial_blobs import PartialBlob
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.fetch.scripted import ScriptedSource

TAR = random.Random(1).randbytes(300_000)
DATA = gzip.compress(TAR, 0)
BLOB = Descriptor(OCI_LAYER_GZIP, digest_of(DATA), len(DATA), {}, None, {})
WHOLE = Whole("it is", digest_of(TAR))
STEP = 1000


class Source(ScriptedSource):
    """Stops at byte `end` and sets `stands`, or breaks off there if `breaks`."""

    def __init__(self, data: bytes = DATA) -> None:
        super().__init__()
        self.blobs[BLOB.digest] = data
        self.end = len(DATA)
        self.breaks = False
        self.stands = trio.Event()
        self.distrusted: list[Digest] = []

    def distrust(self, digest: Digest) -> None:
        self.distrusted.append(digest)

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[Any]:
        async with super().open_range(digest, size, start, end) as stream:
            yield _Halting(self, stream, start)


class _Halting:
    received = 0

    def __init__(self, source: Source, stream: Any, position: int) -> None:
        self._source = source
        self._stream = stream
        self._position = position

    async def receive_exactly(self, count: int) -> bytes:
        if self._position + count > self._source.end:
            if self._source.breaks:
                raise Unreachable("it broke off")
            self._source.stands.set()
            await trio.sleep_forever()
        self._position += count
        return await self._stream.receive_exactly(count)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of 64,000 bytes, which come in small steps."""
    monkeypatch.setattr(whole_blob, "RANGE", 64_000)
    monkeypatch.setattr(whole_blob, "_STEP", STEP)
    monkeypatch.setattr(whole_blob, "_LONG_STEP", STEP)


async def fetch(source: Source, store: Store, whole: Whole = WHOLE, received: Callable[[int], None] = lambda _: None) -> bytes:
    """The tar."""
    async with fetch_tar(source, BLOB, whole, store, lambda _: None, received=received, keep=True) as spool:
        return spool.read_at(0, spool.size)


def kept(store: Store) -> int | None:
    """How much of the blob is in the store; None if there is no file."""
    sign = store.partial_blobs.last_touched(BLOB.digest)
    return sign[1] if sign is not None else None


async def interrupted(source: Source, store: Store, at: int) -> None:
    """An attempt that is cancelled when `at` bytes have come, and have been kept."""
    source.end = at
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, source, store)
        await source.stands.wait()
        with trio.fail_after(30):
            while (kept(store) or 0) < at // STEP * STEP:  # noqa: ASYNC110  a thread sets no event of ours
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    source.end = len(DATA)
    source.ranges.clear()


@pytest.mark.parametrize("at", [STEP, 100_000, len(DATA)])
async def test_next_attempt_asks_for_the_rest(at: int, store: Store) -> None:
    """What came before a cancellation is kept to the last step, also past the first range; when all is unpacked, it goes."""
    source = Source()
    if at == len(DATA):
        with store.partial_blobs.open(BLOB.digest, len(DATA)) as part:
            part.append(memoryview(DATA))
    else:
        await interrupted(source, store, at)
        assert kept(store) == at
    came: list[int] = []
    assert await fetch(source, store, received=came.append) == TAR
    assert sum(end - start for start, end in source.ranges) == len(DATA) - at == sum(came)
    assert min((start for start, _ in source.ranges), default=at) == at
    assert kept(store) is None


async def test_source_that_breaks_off_costs_nothing(store: Store) -> None:
    """Its error is raised, and what arrived is kept."""
    source = Source()
    source.end, source.breaks = 100_000, True
    with pytest.raises(Unreachable):
        await fetch(source, store)
    assert kept(store) == 100_000
    source.end = len(DATA)
    source.ranges.clear()
    assert await fetch(source, store) == TAR
    assert min(source.ranges)[0] == 100_000


async def test_registries_that_stand_still_take_nobodys_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many layers wait for one, all else in the process has threads."""
    limiter = trio.to_thread.current_default_thread_limiter()
    monkeypatch.setattr(limiter, "total_tokens", 2)
    sources = [Source() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for source in sources:
            source.end = 0
            nursery.start_soon(fetch, source, store)
        with trio.fail_after(30):
            for source in sources:
                await source.stands.wait()
            await trio.to_thread.run_sync(lambda: None)
        nursery.cancel_scope.cancel()


async def test_damaged_part_is_fetched_again(store: Store, expect_log: LogWatch) -> None:
    """Once, and from the first byte: where it is wrong is unknown. The inflater may be the first to notice."""
    expect_log("fetching it once more")
    for damage in (bytes(50_000), DATA[:49_999] + b"!"):
        with store.partial_blobs.open(BLOB.digest, len(DATA)) as part:
            part.append(memoryview(damage))
        source = Source()
        assert await fetch(source, store) == TAR
        assert source.ranges[-6:] and min(source.ranges)[0] == 0
        assert kept(store) is None


async def test_wrong_bytes_once(store: Store, expect_log: LogWatch) -> None:
    """They are refused and their source is distrusted; the right bytes are fetched."""
    expect_log("hashes to .*fetching it once more")
    source = Source(DATA[:-1] + bytes([DATA[-1] ^ 1]))

    def distrust(digest: Digest) -> None:
        source.blobs[digest] = DATA

    source.distrust = distrust  # type: ignore[method-assign]
    assert await fetch(source, store) == TAR


async def test_wrong_bytes_for_ever(store: Store, expect_log: LogWatch) -> None:
    """Twice, and then it is an error, of which nothing is left."""
    expect_log("hashes to .*fetching it once more")
    source = Source(bytes(reversed(DATA[:-1])) + b"!")
    source.blobs[BLOB.digest] = DATA[:-8] + bytes(8)
    with pytest.raises((DigestMismatch, InvalidInput)):
        await fetch(source, store)
    assert sum(end - start for start, end in source.ranges) == 2 * len(DATA)
    assert source.distrusted == [BLOB.digest]
    assert kept(store) is None


async def test_image_that_is_wrong_is_fetched_once(store: Store) -> None:
    """The blob is the manifest's, and the diff ID another one's: fetching it again would give the same."""
    source = Source()
    with pytest.raises(DigestMismatch, match="diff ID"):
        await fetch(source, store, Whole("it is", digest_of(b"another")))
    assert sum(end - start for start, end in source.ranges) == len(DATA)
    assert kept(store) is None


async def test_disk_that_refuses_to_keep_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer comes all the same, without what an interruption would save."""

    def refuse(_part: PartialBlob, _data: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartialBlob, "append", refuse)
    assert await fetch(Source(), store) == TAR
    assert kept(store) is None


async def test_layer_for_which_there_is_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of it takes room that somebody else may need: it goes first."""

    def refuse(*_: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr("lazyfs.layertar.spool.Spool.append", refuse)
    with pytest.raises(StoreFull):
        await fetch(Source(), store)
    assert kept(store) is None


async def test_without_the_lock_nothing_is_kept(store: Store) -> None:
    """The file is somebody else's then."""
    with store.partial_blobs.open(BLOB.digest, len(DATA)) as part:
        part.append(memoryview(b"somebody's"))
    async with fetch_tar(Source(), BLOB, WHOLE, store, lambda _: None, keep=False) as spool:
        assert spool.read_at(0, spool.size) == TAR
    assert kept(store) == 10


def zstd(window_log: int) -> bytes:
    """TAR in a frame of this window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, write_content_size=False)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packed.compress(TAR) + packed.flush()


@pytest.mark.parametrize(("window_log", "waits"), [(23, False), (27, True)])
@pytest.mark.parametrize("first", [b"", zstandard.compress(b"")])
async def test_large_window_waits_for_room(
    first: bytes, window_log: int, waits: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zstd frame with a window of more than 8 MiB has it when nothing else takes much memory, and its blob comes once. Frames may differ."""
    data = first + zstd(window_log)
    blob = Descriptor(OCI_LAYER_GZIP, digest_of(data), len(data), {}, None, {})
    monkeypatch.setattr(sys.modules[__name__], "BLOB", blob)
    source = Source(data)
    source.end = len(data)
    found: list[bytes] = []

    async def go_on() -> None:
        found.append(await fetch(source, store))

    async with trio.open_nursery() as nursery:
        async with parsing_budget().hold(PARSING):
            nursery.start_soon(go_on)
            with trio.move_on_after(0.3 if waits else 30):
                while not found:  # noqa: ASYNC110  a thread sets no event of ours
                    await trio.sleep(0.001)
            assert bool(found) is not waits
    assert found == [TAR]
    assert sum(end - start for start, end in source.ranges) == len(data)
    assert kept(store) is None


async def test_large_window_behind_wrong_bytes(store: Store, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch) -> None:
    """A damaged part and a large window are two reasons to begin again."""
    expect_log("fetching it once more")
    data = zstd(27)
    blob = Descriptor(OCI_LAYER_GZIP, digest_of(data), len(data), {}, None, {})
    monkeypatch.setattr(sys.modules[__name__], "BLOB", blob)
    with store.partial_blobs.open(blob.digest, len(data)) as part:
        part.append(memoryview(data[:999] + b"!"))
    source = Source(data)
    source.end = len(data)
    assert await fetch(source, store) == TAR
