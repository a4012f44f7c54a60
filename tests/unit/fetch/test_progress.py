"""Slow sources and stuck processes, in virtual time: who waits how long, and what is fetched again."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import HeldOff, Unreachable
from lazyfs.fetch.fetcher import CLAIM_TIMEOUT, READ_DEADLINE, Fetcher, open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import RANDOM, ScriptedSource, make_layer, pass_time, read_piece, settle

LARGE = RANDOM.randbytes(4 << 20)


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """Time passes when a test says so: a jump by itself would come while a thread works."""
    autojump_clock.autojump_threshold = math.inf
    return autojump_clock


class Reader:
    """One read and its result."""

    def __init__(self, fetcher: Fetcher, layer: LayerBlob, number: int) -> None:
        self.read: Callable[[], Awaitable[bytes]] = lambda: read_piece(fetcher, layer, number)
        self.got: bytes | None = None
        self.error: Unreachable | None = None
        self.after = math.nan
        """Seconds until it ended."""

    async def run(self) -> None:
        began = trio.current_time()
        try:
            self.got = await self.read()
        except Unreachable as error:
            self.error = error
        self.after = trio.current_time() - began


async def at_once(nursery: trio.Nursery, fetcher: Fetcher, layer: LayerBlob, number: int) -> bytes | None:
    """Read one chunk without letting time pass."""
    reader = Reader(fetcher, layer, number)
    nursery.start_soon(reader.run)
    await settle(fetcher)
    return reader.got


async def test_a_slow_chunk_is_right_at_the_second_read_and_each_byte_is_fetched_once(store: Store, clock: MockClock) -> None:
    """50 KB/s and a chunk of 4 MiB: 84 s. The first read misses its deadline; the second joins the run, which makes progress."""
    layer, blob = make_layer([(b"large", LARGE)], chunk_size=4 << 20)
    source = ScriptedSource(blob)
    source.rate = 50_000
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        first, second = (Reader(fetcher, layer, 0) for _ in range(2))
        nursery.start_soon(first.run)
        await pass_time(clock, fetcher, READ_DEADLINE + 1)
        assert first.error is not None and first.after == READ_DEADLINE
        nursery.start_soon(second.run)
        await pass_time(clock, fetcher, 30)
        assert second.got == LARGE
        assert len(source.ranges) == 1 and source.sent == layer.pieces[0].chunk.member_end
        assert await at_once(nursery, fetcher, layer, 0) == LARGE and len(source.ranges) == 1


@pytest.mark.parametrize("rate", [1, 150])
async def test_a_range_that_trickles_is_given_up_at_the_deadline(store: Store, clock: MockClock, rate: int) -> None:
    """Below 4 KiB in 20 s: the second read sends a second request, whatever the first one still delivers."""
    layer, blob = make_layer([(b"large", LARGE)], chunk_size=4 << 20)
    source = ScriptedSource(blob)
    source.rate = rate
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        reader = Reader(fetcher, layer, 0)
        nursery.start_soon(reader.run)
        await pass_time(clock, fetcher, READ_DEADLINE + 1)
        assert reader.error is not None
        source.rate = None
        assert await at_once(nursery, fetcher, layer, 0) == LARGE
        assert len(source.ranges) == 2


async def test_earlier_bytes_are_not_progress(store: Store, clock: MockClock) -> None:
    """A range that delivers a megabyte at first and then trickles is as bad as one that always trickles."""
    layer, blob = make_layer([(b"large", LARGE)], chunk_size=4 << 20)
    source = ScriptedSource(blob)
    source.rate = 100_000
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        reader = Reader(fetcher, layer, 0)
        nursery.start_soon(reader.run)
        await pass_time(clock, fetcher, 10)
        source.streams[0].rate = 1
        await pass_time(clock, fetcher, READ_DEADLINE)
        assert reader.error is not None
        source.rate = None
        assert await at_once(nursery, fetcher, layer, 0) == LARGE
        assert len(source.ranges) == 2


async def test_files_that_share_a_range_do_not_fail_with_it(store: Store, clock: MockClock) -> None:
    """When a reader's deadline ends a run, the others start another one within their own deadlines."""
    files = [(b"f%d" % number, RANDOM.randbytes(10_000)) for number in range(3)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.rate = 1
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        first, *others = (Reader(fetcher, layer, number) for number in range(3))
        nursery.start_soon(first.run)
        await pass_time(clock, fetcher, 30)
        for other in others:
            nursery.start_soon(other.run)
        await settle(fetcher)
        assert len(source.ranges) == 1, "one range brings all three"
        source.rate = None
        await pass_time(clock, fetcher, 31)
        assert first.error is not None
        assert [other.got for other in others] == [files[1][1], files[2][1]]


async def test_a_run_that_waits_for_a_slot_is_not_stalled(store: Store, clock: MockClock) -> None:
    """Its reader gives up, and the run keeps its place in the queue."""
    files = [(b"f%d" % number, RANDOM.randbytes(1 << 20)) for number in range(18)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.rate = 12_000  # 87 s each, and eight at once
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        readers = [Reader(fetcher, layer, number) for number in range(0, 18, 2)]
        for reader in readers:
            nursery.start_soon(reader.run)
        await pass_time(clock, fetcher, READ_DEADLINE + 1)
        assert all(reader.error for reader in readers) and len(source.ranges) == 8
        flight = fetcher._flights.get(layer.pieces[16].chunk.digest)
        assert flight is not None and not flight.run.given_up
        source.rate = None
        last = Reader(fetcher, layer, 16)
        nursery.start_soon(last.run)
        await pass_time(clock, fetcher, 30)  # the eight end
        assert last.got == files[16][1]
        assert len(source.ranges) == 9


async def test_another_process_claim_holds_a_reader_for_a_while_only(store: Store, clock: MockClock) -> None:
    """That process hangs or was stopped. What it delivers later is kept too, and is the same."""
    layer, blob = make_layer([(b"large", LARGE)], chunk_size=1 << 20)
    source = ScriptedSource(blob)
    piece = layer.pieces[1]
    with Store.open(store.directory.path) as other:
        assert other.claim(piece.chunk.digest)
        async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
            reader = Reader(fetcher, layer, 1)
            nursery.start_soon(reader.run)
            await pass_time(clock, fetcher, CLAIM_TIMEOUT - 1)
            assert reader.got is None and not source.ranges
            await pass_time(clock, fetcher, 2)
            assert reader.got == LARGE[1 << 20 : 2 << 20]
            other.keep(piece.content, piece.number, reader.got)
            other.release(piece.chunk.digest)
            for number in (0, 2, 3):
                await at_once(nursery, fetcher, layer, number)
    with Store.open(store.directory.path) as later:
        assert (store.directory.path / "objects" / piece.content.name).read_bytes() == LARGE
        assert not later.missing(piece.content, 0, 4)


async def test_an_object_that_another_process_has_claimed_is_fetched_in_time(store: Store, clock: MockClock) -> None:
    """The same for a lookup of the gate, which asks again and again with its own timeout."""
    layer, blob = make_layer([(b"small", b"few bytes")])
    piece = layer.pieces[0]
    source = ScriptedSource(blob)
    with Store.open(store.directory.path) as other:
        other.claim(piece.chunk.digest)
        async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch_object, layer, piece)
            await pass_time(clock, fetcher, CLAIM_TIMEOUT + 1)
            assert (store.directory.path / "objects" / piece.content.name).exists()


@pytest.mark.parametrize("late", [0, 10])
async def test_a_host_that_wants_to_be_left_alone_fails_a_read_at_once(store: Store, clock: MockClock, late: float) -> None:
    """If the pause is longer than the read waits: for the reader that began the run, and those that joined it. The error says
    how long it is."""
    layer, blob = make_layer([(b"a", RANDOM.randbytes(1000)), (b"b", RANDOM.randbytes(1000))])
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        readers = [Reader(fetcher, layer, number) for number in (0, 0, 1)]
        for reader in readers:
            nursery.start_soon(reader.run)
        await pass_time(clock, fetcher, late)
        source.held_off_until = trio.current_time() + READ_DEADLINE
        source.gate.set()
        await settle(fetcher)
        for reader in readers:
            assert isinstance(reader.error, HeldOff) and reader.after == late
            assert "asked again" in str(reader.error)
        await pass_time(clock, fetcher, 1)
        again = Reader(fetcher, layer, 0)  # as the kernel does
        nursery.start_soon(again.run)
        await settle(fetcher)
        assert isinstance(again.error, HeldOff) and again.after == 0


async def test_a_host_that_wants_to_be_left_alone_for_a_moment_is_waited_for(store: Store, clock: MockClock) -> None:
    """By readers that have enough time left. What the run had received is not requested again. The background tries again
    later."""
    files = [(b"f%d" % number, RANDOM.randbytes(700_000)) for number in range(2)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        source.held_off_until = trio.current_time() + 45
        assert isinstance(await fetcher.fetch(layer, layer.pieces), HeldOff)
        reader = Reader(fetcher, layer, 1)
        nursery.start_soon(reader.run)
        await pass_time(clock, fetcher, 44)
        assert reader.error is reader.got is None
        await pass_time(clock, fetcher, 2)
        assert reader.got == files[1][1] and reader.after == 45
