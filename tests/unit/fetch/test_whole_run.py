"""Eager layers of which something is missing."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import InvalidInput, StoreFull, Unreachable
from lazyfs.fetch.background import Background, Wanted, measure_missing
from lazyfs.fetch.fetcher import READ_DEADLINE, Fetcher, open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.digest import Digest
from lazyfs.format.entry import Entry
from lazyfs.image.layer import Layer
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.converter.making import Item, tar_of
from tests.unit.converter.places import MemoryRepository
from tests.unit.eager.loading import LARGE, asks_for_layers, here, load
from tests.unit.fetch.scripted import until

FILES: list[Item] = [
    (Entry(b"small-%d" % number, "reg", size=100 + number), b"%d" % (number % 10) * (100 + number)) for number in range(20)
]
TAR = tar_of([*FILES, (Entry(b"large", "reg", size=len(LARGE)), LARGE)])


class Source(MemoryRepository):
    """Can be unreachable."""

    away = False

    def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> Any:
        if self.away:
            raise Unreachable("the source is away")
        return super().open_range(digest, size, start, end)


async def loaded(source: Source, store: Store) -> Layer:
    source.add_image(TAR)
    (layer,) = await load(source, store)
    source.done.clear()
    return layer


def remove(store: Store) -> None:
    """Remove every object, by hand."""
    for path in (store.directory.path / "objects").iterdir():
        path.unlink()


async def read(fetcher: Fetcher, blob: LayerBlob, number: int) -> bytes:
    piece = blob.pieces[number]
    return bytes(await fetcher.read(blob, piece, 0, piece.chunk.size))


async def test_stored_chunks_need_no_request(store: Store) -> None:
    """Every file of a layer that was fetched whole is served from the store."""
    source = Source()
    blob = LayerBlob.of(await loaded(source, store))
    async with open_fetcher(store, source) as fetcher:
        assert [await read(fetcher, blob, number) for number in range(20)] == [data for _, data in FILES]
        assert b"".join([await read(fetcher, blob, number) for number in range(20, 23)]) == LARGE
        assert not fetcher.sends_ranges(blob)
    assert not source.done


async def test_one_missing_file_fetches_all_that_is_missing(store: Store, expect_log: LogWatch) -> None:
    """Readers of different files cause one download, and none after it."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    blob = LayerBlob.of(await loaded(source, store))
    remove(store)
    got: dict[int, bytes] = {}

    async def reader(number: int) -> None:
        got[number] = await read(fetcher, blob, number)

    async with open_fetcher(store, source) as fetcher:
        async with trio.open_nursery() as nursery:
            for number in range(23):
                nursery.start_soon(reader, number)
        asked = len(asks_for_layers(source))
        assert {number: got[number] for number in range(20)} == {number: data for number, (_, data) in enumerate(FILES)}
        assert b"".join(got[number] for number in range(20, 23)) == LARGE
        assert [await read(fetcher, blob, number) for number in range(20)] == [data for _, data in FILES]
        assert len(asks_for_layers(source)) == asked
        assert fetcher.statistics().requests <= 2
        assert fetcher.statistics().received >= blob.size
    assert measure_missing(store, [blob]).chunks == 0


async def test_stored_chunks_do_not_wait_for_missing_ones(
    store: Store, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the layer is fetched again, its other files are read as usual."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    blob = LayerBlob.of(await loaded(source, store))
    (store.directory.path / "objects" / blob.pieces[3].content.name).unlink()
    arrive = trio.Event()
    right = source.open_range

    class Waiting:
        def __init__(self, *what: Any, **named: Any) -> None:
            self._inner = right(*what, **named)

        async def __aenter__(self) -> Any:
            await arrive.wait()
            return await self._inner.__aenter__()

        async def __aexit__(self, *problem: object) -> Any:
            return await self._inner.__aexit__(*problem)

    monkeypatch.setattr(source, "open_range", Waiting)
    got: list[bytes] = []

    async def reader() -> None:
        got.append(await read(fetcher, blob, 3))

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await wait_all_tasks_blocked(0.05)
        with trio.fail_after(5):
            assert await read(fetcher, blob, 4) == FILES[4][1]
        assert not got
        arrive.set()
    assert got == [FILES[3][1]]


async def test_an_unreachable_source_is_an_error_and_is_asked_again(store: Store, expect_log: LogWatch) -> None:
    """The read fails with the cause, and the next one tries again."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    blob = LayerBlob.of(await loaded(source, store))
    remove(store)
    async with open_fetcher(store, source) as fetcher:
        source.away = True
        with pytest.raises(Unreachable, match="away"):
            await read(fetcher, blob, 0)
        source.away = False
        assert await read(fetcher, blob, 0) == FILES[0][1]


@pytest.mark.parametrize("place", [200, -9])
async def test_a_blob_that_is_wrong_once(store: Store, expect_log: LogWatch, place: int) -> None:
    """Broken compression or a wrong digest: it is fetched once more, and its reader does not notice."""
    expect_log("(file is|files are) (gone|missing)")
    expect_log("fetching it once more")
    source = Source()
    layer = await loaded(source, store)
    blob = LayerBlob.of(layer)
    remove(store)
    right = source.blobs[layer.digest]
    broken = bytearray(right)
    broken[place] ^= 1
    source.blobs[layer.digest] = bytes(broken)

    def mend(digest: Digest) -> None:
        source.blobs[digest] = right

    source.distrust = mend  # type: ignore[method-assign]
    async with open_fetcher(store, source) as fetcher:
        assert await read(fetcher, blob, 0) == FILES[0][1]
        assert not fetcher.statistics().errors


async def test_a_failing_read_does_not_look_up_the_whole_layer(
    store: Store, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the source is unreachable, each read of a tree of a million files would list them all."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    blob = LayerBlob.of(await loaded(source, store))
    remove(store)
    looked: list[int] = []
    lacking = store.lacking

    def count(places: Sequence[tuple[Content, int]]) -> list[bool]:
        looked.append(len(places))
        return lacking(places)

    monkeypatch.setattr(store, "lacking", count)
    async with open_fetcher(store, source) as fetcher:
        source.away = True
        for number in range(20):
            with pytest.raises(Unreachable, match="away"):
                await read(fetcher, blob, number)
        assert max(looked) == 1
        source.away = False
        assert await read(fetcher, blob, 0) == FILES[0][1]
        assert max(looked) == len(blob.pieces)


async def test_the_background_waits_for_a_layer_that_a_reader_fetches(
    store: Store, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would download it a second time."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    layer = await loaded(source, store)
    blob = LayerBlob.of(layer)
    remove(store)
    arrive, right = trio.Event(), source.open_range

    @asynccontextmanager
    async def waiting(*what: Any, **named: Any) -> AsyncIterator[Any]:
        await arrive.wait()
        async with right(*what, **named) as stream:
            yield stream

    monkeypatch.setattr(source, "open_range", waiting)
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(blob, layer.prefetch_end)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, fetcher, blob, 0)
            await until(lambda: fetcher._wholes)
            nursery.start_soon(fetcher.fetch, blob, blob.pieces)
            await wait_all_tasks_blocked(0.05)
            arrive.set()
        assert fetcher.statistics().requests == 1
        await background.run()
        assert background.finished.is_set() and fetcher.statistics().requests == 1
    assert here(store, (layer,))


async def test_blob_that_is_not_what_it_was(store: Store, expect_log: LogWatch) -> None:
    """Other bytes under its digest are rejected before any of them is served."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    layer = await loaded(source, store)
    blob = LayerBlob.of(layer)
    remove(store)
    source.blobs[layer.digest] = source.blobs[layer.digest][:-9] + b"otherwise"
    expect_log("hashes to .*fetching it once more")
    async with open_fetcher(store, source) as fetcher:
        with pytest.raises(InvalidInput, match="hashes to"):
            await read(fetcher, blob, 0)


async def test_the_background_fetches_the_rest(store: Store, expect_log: LogWatch) -> None:
    """In one go, and it reports that everything is stored."""
    source = Source()
    layer = await loaded(source, store)
    blob = LayerBlob.of(layer)
    expect_log("(file is|files are) (gone|missing)")
    remove(store)
    async with open_fetcher(store, source) as fetcher:
        await read(fetcher, blob, 0)
        background = Background(store, fetcher, [Wanted(blob, layer.prefetch_end)])
        await background.run()
        assert background.finished.is_set() and not background.trouble
    assert here(store, (layer,))


async def test_background_gives_up_where_there_is_no_room(
    store: Store, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not download the layer again and again to find out. Readers are served all the same."""
    expect_log("(file is|files are) (gone|missing)")
    expect_log("without storing it")
    source = Source()
    layer = await loaded(source, store)
    blob = LayerBlob.of(layer)
    remove(store)

    def refuse(*_: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(store, "keep", refuse)
    async with open_fetcher(store, source) as fetcher:
        assert await read(fetcher, blob, 5) == FILES[5][1]
        asked = fetcher.statistics().requests
        background = Background(store, fetcher, [Wanted(blob, 0)])
        await background.run()
        assert "no room" in background.trouble and not background.finished.is_set()
        assert fetcher.statistics().requests <= asked + 1


async def test_read_waits_as_long_as_a_slow_line_needs(
    store: Store, autojump_clock: trio.testing.MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute, plus a second for each megabyte: then it fails, and the next one tries again."""
    expect_log("(file is|files are) (gone|missing)")
    source = Source()
    blob = LayerBlob.of(await loaded(source, store))
    remove(store)

    @asynccontextmanager
    async def never(*what: Any, **named: Any) -> AsyncIterator[Any]:
        await trio.sleep_forever()
        yield

    monkeypatch.setattr(source, "open_range", never)
    async with open_fetcher(store, source) as fetcher:
        began = trio.current_time()
        with pytest.raises(Unreachable, match="in 69 s"):
            await read(fetcher, blob, 0)
        assert trio.current_time() - began == pytest.approx(READ_DEADLINE + blob.size / 1e6, abs=1)
