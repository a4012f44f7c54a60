"""A blob in parallel ranges."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import RangeIgnored, Unreachable
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from lazyfs.whole import blob as whole_blob
from lazyfs.whole.blob import BlobReader
from tests.unit.fetch.scripted import ScriptedSource

DATA = random.Random(1).randbytes(1000)
BLOB = Descriptor(OCI_LAYER_GZIP, digest_of(DATA), len(DATA), {}, None, {})


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of 64 bytes."""
    monkeypatch.setattr(whole_blob, "RANGE", 64)


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


async def test_range_that_breaks_off_is_asked_for_again() -> None:
    """Only that one, and not for ever."""
    source = ScriptedSource(DATA)
    source.fails = 2
    async with trio.open_nursery() as nursery:
        assert await BlobReader(source, BLOB, nursery).receive_exactly(1000) == DATA
    assert len(source.ranges) == 16 + 2
    source.fails = 100
    async with trio.open_nursery() as nursery:
        with pytest.raises(Unreachable):
            await BlobReader(source, BLOB, nursery).receive_exactly(10)
    assert source.fails == 100 - 4 * 3


async def test_server_without_ranges_is_told_at_once() -> None:
    """It is not tried again: the answer would be the same."""
    source = ScriptedSource(DATA)
    source.ignores_ranges = True
    async with trio.open_nursery() as nursery:
        with pytest.raises(RangeIgnored):
            await BlobReader(source, BLOB, nursery).receive_exactly(10)
    assert len(source.ranges) == 4
