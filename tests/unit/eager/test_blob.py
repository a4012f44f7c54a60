"""A blob in parallel ranges."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.eager import blob as whole_blob
from lazyfs.eager.blob import BlobReader
from lazyfs.errors import Unreachable
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from tests.unit.fetch.scripted import ScriptedSource

DATA = random.Random(1).randbytes(1000)
BLOB = Descriptor(OCI_LAYER_GZIP, digest_of(DATA), len(DATA), {}, None, {})


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of 64 bytes."""
    monkeypatch.setattr(whole_blob, "RANGE", 64)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each range comes in four steps."""
    monkeypatch.setattr(whole_blob, "_STEP", 16)
    monkeypatch.setattr(whole_blob, "_LONG_STEP", 16)


async def test_bytes_come_in_order_in_whatever_steps() -> None:
    """Each range is asked for once, and steps may be longer than a range."""
    source = ScriptedSource(DATA)
    steps = random.Random(2)
    received = b""
    async with trio.open_nursery() as nursery:
        reader = BlobReader(source, BLOB, nursery)
        while len(received) < len(DATA):
            received += await reader.receive_exactly(min(steps.choice([1, 63, 64, 65, 300]), len(DATA) - len(received)))
    assert received == DATA
    assert sorted(source.ranges) == [(start, min(start + 64, 1000)) for start in range(0, 1000, 64)]


async def test_what_is_ahead_of_the_reader_is_bounded() -> None:
    """Four ranges are asked for before the first byte is wanted twice, and one more for each that is taken up."""
    source = ScriptedSource(DATA)
    async with trio.open_nursery() as nursery:
        reader = BlobReader(source, BLOB, nursery)
        await reader.receive_exactly(1)
        await wait_all_tasks_blocked()
        assert len(source.ranges) == 5
        await reader.receive_exactly(63)
        await wait_all_tasks_blocked()
        assert len(source.ranges) == 5
        await reader.receive_exactly(1)
        await wait_all_tasks_blocked()
        assert len(source.ranges) == 6
        nursery.cancel_scope.cancel()


async def test_range_that_breaks_off_is_an_error_after_what_came() -> None:
    """The source has tried again already (registry/body.py): the reader gets what arrived, and then the error."""
    source = ScriptedSource(DATA)
    async with trio.open_nursery() as nursery:
        reader = BlobReader(source, BLOB, nursery)
        await reader.receive_exactly(64)
        await wait_all_tasks_blocked()
        source.fails = 100
        assert await reader.receive_exactly(64 * 4) == DATA[64:320]
        with pytest.raises(Unreachable):
            await reader.receive_exactly(1)
        nursery.cancel_scope.cancel()


async def test_server_without_ranges_is_read_as_one_stream() -> None:
    """From where the reader stands, at once, and with a bound on what is ahead of him: what stands before is dropped."""
    for start in (0, 300):
        source = ScriptedSource(DATA)
        source.ignores_ranges = True
        async with trio.open_nursery() as nursery:
            assert await BlobReader(source, BLOB, nursery, start).receive_exactly(1000 - start) == DATA[start:]
        assert source.ranges[-1] == (0, 1000)
        assert len(source.ranges) == 4 + 1


@pytest.mark.usefixtures("small_steps")
async def test_bytes_are_given_as_they_arrive() -> None:
    """Before their range is complete: they can be kept, whatever comes then."""
    source = ScriptedSource(DATA)
    async with trio.open_nursery() as nursery:
        reader = BlobReader(source, BLOB, nursery)
        assert await reader.receive_some(1000) == DATA[:16]
        assert await reader.receive_some(3) == DATA[16:19]
        nursery.cancel_scope.cancel()


async def test_many_blobs_share_what_is_ahead() -> None:
    """Forty blobs hold a range each and 16 more, not four each; all of them arrive, and what one leaves, another takes."""
    sources = [ScriptedSource(DATA) for _ in range(40)]
    async with trio.open_nursery() as nursery:
        readers = [BlobReader(source, BLOB, nursery) for source in sources]
        for reader in readers:
            await reader.receive_exactly(1)
        await wait_all_tasks_blocked()
        assert sum(len(source.ranges) for source in sources) <= 40 + 16 + 1
        for reader in readers:
            assert await reader.receive_exactly(len(DATA) - 1) == DATA[1:]
    assert sorted(sources[0].ranges) == [(start, min(start + 64, 1000)) for start in range(0, 1000, 64)]
    assert not whole_blob._SHARED.borrowed_tokens


async def test_blob_that_is_given_up_gives_its_share_back() -> None:
    """Wherever its ranges are."""
    async with trio.open_nursery() as nursery:
        await BlobReader(ScriptedSource(DATA), BLOB, nursery).receive_exactly(1)
        assert whole_blob._SHARED.borrowed_tokens
        nursery.cancel_scope.cancel()
    assert not whole_blob._SHARED.borrowed_tokens
