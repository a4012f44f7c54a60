"""Two sources of one store with the same layer: each byte is fetched once, and neither depends on the other. In virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import LazyfsError
from lazyfs.fetch.background import Background, Wanted, measure_missing
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.fetch.flight import StoreFlights
from lazyfs.fetch.other_sources import TIMEOUT, WINDOWS
from lazyfs.fetch.piece import LayerBlob
from lazyfs.gate.catalog import Supply
from lazyfs.gate.failover import Failover
from lazyfs.store.store import Store
from lazyfs.tasks import Failures
from tests.conftest import LogWatch
from tests.unit.fetch.scripted import FILES, RANDOM, ScriptedSource, make_layer, read_piece, until

LARGE = RANDOM.randbytes(1 << 20)


@asynccontextmanager
async def fetchers(store: Store, sources: Sequence[ScriptedSource]) -> AsyncIterator[list[Fetcher]]:
    """Fetchers of these sources, with shared flights."""
    store_flights = StoreFlights()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_fetcher(store, source, store_flights=store_flights)) for source in sources]


def held_back(source: ScriptedSource) -> ScriptedSource:
    """A source that sends nothing until its gate is opened."""
    source.gate = trio.Event()
    return source


async def test_two_backgrounds_fetch_each_byte_once(store: Store, jumping: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In lockstep, with equal sources: each leaves to the other what that one has begun, and continues behind it."""
    monkeypatch.setattr("lazyfs.fetch.background.RUN_BYTES", 50_000)
    layer, blob = make_layer(FILES)
    sources = [ScriptedSource(blob), ScriptedSource(blob)]
    for source in sources:
        source.rate = 10_000
    async with fetchers(store, sources) as both:
        backgrounds = [Background(store, fetcher, [Wanted(layer, 0)]) for fetcher in both]
        async with trio.open_nursery() as nursery:
            for background in backgrounds:
                nursery.start_soon(background.run)
        assert all(background.finished.is_set() for background in backgrounds)
    assert measure_missing(store, [layer]).chunks == 0
    assert sum(source.sent for source in sources) == layer.data_end, "1.0 times its bytes"
    assert all(source.sent > layer.data_end / 4 for source in sources), "both have a share"


async def test_a_reader_joins_what_another_source_is_fetching(store: Store, jumping: MockClock) -> None:
    """Its own source, which may lack permission for the blob, is not asked for bytes that their digest verifies."""
    layer, blob = make_layer([(b"large", LARGE)])
    one, other = held_back(ScriptedSource(blob)), ScriptedSource(blob)
    got: list[bytes] = []

    async def read(fetcher: Fetcher) -> None:
        got.append(await read_piece(fetcher, layer, 0))

    async with fetchers(store, [one, other]) as both, trio.open_nursery() as nursery:
        nursery.start_soon(read, both[0])
        await until(lambda: one.ranges)
        nursery.start_soon(read, both[1])
        await trio.sleep(1)
        one.gate.set()
    assert got == [LARGE, LARGE] and not other.ranges


class Trickling(ScriptedSource):
    """Sends a byte a second."""

    def __init__(self, blob: bytes) -> None:
        super().__init__(blob)
        self.rate = 1


def silent(blob: bytes) -> ScriptedSource:
    return held_back(ScriptedSource(blob))


def lying(blob: bytes) -> ScriptedSource:
    source = ScriptedSource(blob)
    source.lies = 1000
    return source


def failing(blob: bytes) -> ScriptedSource:
    source = ScriptedSource(blob)
    source.fails = 1000
    return source


BAD = {silent: TIMEOUT, Trickling: WINDOWS * TIMEOUT, lying: 0.0, failing: 0.0}
"""Behaviour of a first source, and the seconds that it costs a reader of another one."""


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
@pytest.mark.parametrize("through_the_gate", [False, True])
async def test_a_bad_source_costs_no_more_than_the_failover(
    store: Store, jumping: MockClock, bad: type[ScriptedSource], through_the_gate: bool
) -> None:
    """Right bytes from the reader's own source, whatever the first one does, and no wait for the next reader."""
    layer, blob = make_layer([(b"large", LARGE), (b"next", LARGE[::-1])])
    first, own = bad(blob), ScriptedSource(blob)
    async with fetchers(store, [first, own]) as both, trio.open_nursery() as nursery:
        nursery.start_soon(ignore, partial(read_piece, both[0], layer, 0))
        await until(lambda: first.ranges)
        began = trio.current_time()
        with trio.fail_after(BAD[bad] + 0.1):
            assert await read(both, layer, 0, through_the_gate=through_the_gate) == LARGE
        assert trio.current_time() - began == pytest.approx(BAD[bad])
        if BAD[bad]:
            nursery.start_soon(ignore, partial(read_piece, both[0], layer, 1))
            await until(lambda: len(first.ranges) > 1 or own.sent == layer.data_end)
            with trio.fail_after(0.1):
                assert await read(both, layer, 1, through_the_gate=through_the_gate) == LARGE[::-1]
        nursery.cancel_scope.cancel()


async def read(both: list[Fetcher], layer: LayerBlob, number: int, *, through_the_gate: bool) -> bytes:
    """As a reader of the second image. The gate asks the first image's source first."""
    if not through_the_gate:
        return await read_piece(both[1], layer, number)
    supplies = [Supply(fetcher, layer, layer.pieces[number : number + 1]) for fetcher in both]
    return await Failover(Failures()).run(supplies, slice(1), lambda supply: read_piece(supply.fetcher, layer, number), TIMEOUT)


async def ignore(work: partial[object]) -> None:
    try:
        await work()  # type: ignore[misc]
    except LazyfsError:
        pass


async def test_a_closing_source_completes_only_its_own_flights(store: Store, jumping: MockClock) -> None:
    """Its readers get an error. A reader that has joined gets the bytes from its own source, and the other flights continue."""
    layer, blob = make_layer([(b"large", LARGE), (b"next", LARGE[::-1])])
    ending, staying = silent(blob), silent(blob)
    got: dict[int, bytes] = {}

    async def read(fetcher: Fetcher, number: int) -> None:
        got[number] = await read_piece(fetcher, layer, number)

    store_flights = StoreFlights()
    async with open_fetcher(store, staying, store_flights=store_flights) as stays, trio.open_nursery() as nursery:
        async with open_fetcher(store, ending, store_flights=store_flights) as ends:
            nursery.start_soon(ignore, partial(read_piece, ends, layer, 0))
            await until(lambda: ending.ranges)
            nursery.start_soon(read, stays, 0)
            nursery.start_soon(read, stays, 1)
            await until(lambda: staying.ranges)
            assert layer.pieces[0].chunk.digest in store_flights and not got
        await until(lambda: len(staying.ranges) == 2)
        staying.gate.set()
    assert got == {0: LARGE, 1: LARGE[::-1]}
    assert not store_flights._flights


@pytest.mark.parametrize("bad", [silent, Trickling], ids=lambda bad: bad.__name__)
async def test_no_background_depends_on_another_source(store: Store, jumping: MockClock, bad: type[ScriptedSource]) -> None:
    """What a source has begun and does not deliver is fetched from the other one after a while."""
    layer, blob = make_layer(FILES)
    first, own = bad(blob), ScriptedSource(blob)
    async with fetchers(store, [first, own]) as both, trio.open_nursery() as nursery:
        nursery.start_soon(Background(store, both[0], [Wanted(layer, 0)]).run)
        await until(lambda: first.ranges)
        background = Background(store, both[1], [Wanted(layer, 0)])
        with trio.fail_after(130):
            await background.run()
        assert background.finished.is_set() and first.sent < 1000
        nursery.cancel_scope.cancel()


async def test_a_background_continues_where_another_source_fails(store: Store, jumping: MockClock, expect_log: LogWatch) -> None:
    """Wrong bytes of the first source are neither accepted nor counted as damage of the other one's layer."""
    expect_log("is stalled")
    layer, blob = make_layer(FILES)
    first, own = held_back(lying(blob)), ScriptedSource(blob)
    async with fetchers(store, [first, own]) as both:
        backgrounds = [Background(store, fetcher, [Wanted(layer, 0)]) for fetcher in both]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backgrounds[0].run)
            await until(lambda: first.ranges)
            nursery.start_soon(backgrounds[1].run)
            await trio.sleep(0.5)
            assert not own.ranges
            first.gate.set()
        assert backgrounds[1].finished.is_set() and not backgrounds[1].trouble
    assert measure_missing(store, [layer]).chunks == 0


async def test_chunks_of_two_files_are_one(store: Store, jumping: MockClock) -> None:
    """The flight belongs to the chunk: layers that have it at different offsets share it too."""
    layer, blob = make_layer([(b"large", LARGE)])
    other_layer, other_blob = make_layer([(b"before", b"something"), (b"copy", LARGE)])
    one, other = held_back(ScriptedSource(blob)), ScriptedSource(other_blob)
    number = next(number for number, piece in enumerate(other_layer.pieces) if piece.chunk.size == len(LARGE))
    async with fetchers(store, [one, other]) as both, trio.open_nursery() as nursery:
        nursery.start_soon(read_piece, both[0], layer, 0)
        await until(lambda: one.ranges)
        one.gate.set()
        assert await read_piece(both[1], other_layer, number) == LARGE
    assert not other.ranges


async def test_the_gate_passes_over_the_source_that_is_silent(store: Store, jumping: MockClock) -> None:
    """The silent source is not the one that it asks first: that one only waits for the other's flight, and fetches once that is
    passed over."""
    layer, blob = make_layer([(b"large", LARGE)])
    honest, mute = ScriptedSource(blob), silent(blob)
    async with fetchers(store, [honest, mute]) as both, trio.open_nursery() as nursery:
        nursery.start_soon(ignore, partial(read_piece, both[1], layer, 0))
        await until(lambda: mute.ranges)
        with trio.fail_after(TIMEOUT + 0.1):
            assert await read(both, layer, 0, through_the_gate=True) == LARGE
        assert both[1].is_passed_over and not both[0].is_passed_over
        nursery.cancel_scope.cancel()
