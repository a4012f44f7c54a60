"""Bytes that do not match the TOC: the first time, they are fetched again over another connection; the second time, it is an
error.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest
import trio

from lazyfs.errors import DigestMismatch, InvalidInput
from lazyfs.fetch.background import Background, Wanted, measure_missing
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import FILES, RANDOM, ScriptedSource, make_layer, read_piece


def break_once(source: ScriptedSource, layer: LayerBlob, broken: bytes) -> None:
    """The source delivers other bytes of the layer until they are found wrong."""
    blob, distrust = source.blobs[layer.digest], source.distrust
    source.blobs[layer.digest] = broken

    def mend(digest: str) -> None:
        distrust(layer.digest)
        source.blobs[layer.digest] = blob

    source.distrust = mend  # type: ignore[method-assign]


def flipped(blob: bytes, *places: int) -> bytes:
    data = bytearray(blob)
    for place in places:
        data[place] ^= 1
    return bytes(data)


async def every_file(fetcher: Fetcher, layer: LayerBlob) -> None:
    async def read(number: int) -> None:
        assert await read_piece(fetcher, layer, number) == FILES[number][1]

    async with trio.open_nursery() as nursery:
        for number in range(len(FILES)):
            nursery.start_soon(read, number)


async def in_the_background(fetcher: Fetcher, layer: LayerBlob) -> None:
    background = Background(fetcher._store, fetcher, [Wanted(layer, 0)])
    await background.run()
    assert background.finished.is_set() and not background.trouble


@pytest.mark.parametrize("fetch", [every_file, in_the_background])
@pytest.mark.parametrize("number", [0, 3, 399])
async def test_wrong_once_is_not_an_error(
    store: Store, fetch: Callable[[Fetcher, LayerBlob], Awaitable[None]], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader of the chunk, readers of its neighbours, and the background all get what they want. It is counted and logged."""
    caplog.set_level(logging.INFO, "lazyfs")
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    break_once(source, layer, flipped(blob, layer.pieces[number].chunk.member + 40))
    async with open_fetcher(store, source, image="docker://r/app") as fetcher:
        await fetch(fetcher, layer)
        statistics = fetcher.statistics()
    assert measure_missing(store, [layer]).chunks == 0
    assert statistics.wrong == 1 and not statistics.errors and source.distrusted == [layer.digest]
    (line,) = [record for record in caplog.records if "does not match its digest" in record.message]
    piece = layer.pieces[number]
    for subject in (layer.digest, "docker://r/app", f"offset {piece.chunk.member} ", piece.content.name):
        assert subject in line.message
    assert line.levelno == logging.INFO


async def test_the_second_try_asks_for_what_was_wrong_only(store: Store) -> None:
    """What was right in the same range is kept, and not fetched again."""
    files = [(b"f%d" % number, RANDOM.randbytes(5000)) for number in range(4)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    second = layer.pieces[1].chunk
    break_once(source, layer, flipped(blob, second.member + 40))
    async with open_fetcher(store, source) as fetcher:
        assert await read_piece(fetcher, layer, 0) == files[0][1]
        assert await read_piece(fetcher, layer, 1) == files[1][1]
    assert source.ranges == [(0, layer.pieces[3].chunk.member_end), (second.member, second.member_end)]


async def test_a_layer_without_ranges_is_streamed_again(store: Store) -> None:
    """As a whole: there is no other way to get its bytes."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.ignores_ranges = True
    break_once(source, layer, flipped(blob, *(layer.pieces[number].chunk.member + 40 for number in (3, 200, 390))))
    async with open_fetcher(store, source) as fetcher:
        await every_file(fetcher, layer)
        assert fetcher.statistics().wrong == 1
    assert source.ranges.count((0, layer.size)) == 2


async def test_sound_gzip_of_other_bytes_is_fetched_again(store: Store) -> None:
    """Only its digest shows it."""
    layer, blob = make_layer([(b"a", b"expected content")])
    _, lying = make_layer([(b"a", b"something  else!")])
    source = ScriptedSource(blob)
    break_once(source, layer, lying)
    async with open_fetcher(store, source) as fetcher:
        assert await read_piece(fetcher, layer, 0) == b"expected content"


async def test_wrong_twice_is_an_error_and_two_requests(store: Store) -> None:
    """Each read sends two requests, not more. Its neighbours are served. Once the source is right again, so is the read."""
    layer, blob = make_layer(FILES[:2])
    source = ScriptedSource()
    source.blobs[layer.digest] = flipped(blob, layer.pieces[0].chunk.member + 40)
    async with open_fetcher(store, source) as fetcher:
        for number in (1, 2):
            with pytest.raises(InvalidInput):
                await read_piece(fetcher, layer, 0)
            assert len(source.ranges) == 2 * number
        assert await read_piece(fetcher, layer, 1) == FILES[1][1]
        assert len(source.ranges) == 4
        assert fetcher.statistics().errors == {"InvalidInput": 2} or fetcher.statistics().errors == {"DigestMismatch": 2}
        source.blobs[layer.digest] = blob
        assert await read_piece(fetcher, layer, 0) == FILES[0][1]


async def test_readers_of_right_bytes_do_not_wait_for_wrong_ones(store: Store) -> None:
    """The second try hangs. What was right has arrived long before."""
    files = [(b"f%d" % number, RANDOM.randbytes(5000)) for number in range(2)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    break_once(source, layer, flipped(blob, layer.pieces[0].chunk.member + 40))
    mend = source.distrust

    def stop(digest: str) -> None:
        mend(digest)  # type: ignore[arg-type]
        source.gate = trio.Event()

    source.distrust = stop  # type: ignore[method-assign]
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        nursery.start_soon(read_piece, fetcher, layer, 0)
        with trio.fail_after(10):
            while len(source.ranges) < 2:
                await trio.lowlevel.checkpoint()
            assert await read_piece(fetcher, layer, 1) == files[1][1]
        source.gate.set()


async def test_a_mismatch_says_what_it_is(store: Store) -> None:
    """The error is that of the digest."""
    layer, _ = make_layer([(b"a", b"expected content")])
    _, lying = make_layer([(b"a", b"something  else!")])
    source = ScriptedSource()
    source.blobs[layer.digest] = lying
    async with open_fetcher(store, source) as fetcher:
        with pytest.raises(DigestMismatch, match="should hash to sha256:"):
            await read_piece(fetcher, layer, 0)
        assert fetcher.statistics().errors == {"DigestMismatch": 1}
