"""The background fetch, with a scripted source and a real store."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import StoreFull
from lazyfs.fetch.background import Background, Wanted, measure_missing
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import FILES, RANDOM, ScriptedSource, make_layer, read_piece, until


async def test_the_background_fetches_everything_and_the_prefetch_range_first(store: Store) -> None:
    """Afterwards nothing is missing, with few requests, and the prefetch range came first."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    middle = layer.pieces[200].chunk.member
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, middle)])
        await background.run()
        assert background.finished.is_set()
    assert measure_missing(store, [layer]).chunks == 0
    assert source.ranges[0] == (0, middle) and len(source.ranges) == 2


async def test_only_the_prefetch_range_if_the_rest_is_not_wanted(store: Store) -> None:
    """What is behind the landmark is left to readers, and nothing claims that everything is stored."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    middle = layer.pieces[200].chunk.member
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, middle)], rest=False)
        await background.run()
    assert not background.finished.is_set()
    assert source.ranges == [(0, middle)]


async def test_background_fills_a_sparse_file_at_once(store: Store, autojump_clock: trio.testing.MockClock) -> None:
    """A chunk that a file contains many times is fetched once, and copied to all its positions without a pause."""
    layer, blob = make_layer([(b"sparse", bytes(100_000) + b"x"), (b"other", bytes(7_000))], chunk_size=7_000)
    source = ScriptedSource(blob)
    start = trio.current_time()
    async with open_fetcher(store, source) as fetcher:
        await Background(store, fetcher, [Wanted(layer, 0)]).run()
    assert trio.current_time() == start
    assert len(source.ranges) == 1
    assert not any(store.missing_many([piece.content for piece in layer.pieces]))


async def test_background_waits_for_readers(store: Store) -> None:
    """While a reader waits for something else, the background receives nothing."""
    slow, slow_blob = make_layer([(b"slow", RANDOM.randbytes(1000))])
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.blobs[slow.digest] = slow_blob
    stuck = ScriptedSource(slow_blob)
    stuck.gate = trio.Event()

    real_open = source.open_range
    source.open_range = lambda digest, *rest, **more: (stuck.open_range if digest == slow.digest else real_open)(
        digest, *rest, **more
    )  # type: ignore[method-assign]
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, 0)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, fetcher, slow, 0)
            await until(lambda: stuck.ranges)
            nursery.start_soon(background.run)
            await wait_all_tasks_blocked(0.05)
            assert fetcher.statistics().chunks == 0
            # But a reader of the background's own bytes does not have to wait.
            assert await read_piece(fetcher, layer, 399) == FILES[399][1]
            stuck.gate.set()
        assert background.finished.is_set()


async def test_the_background_continues_when_the_source_is_back(store: Store, autojump_clock: object, expect_log: object) -> None:
    """It logs once why it is stalled, tries again later, and finishes."""
    expect_log("background fetch of layer .* of scripted: is stalled: the source has gone away")  # type: ignore[operator]
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.fails = 3
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, 0)])
        await background.run()
    assert background.finished.is_set() and not background.trouble


async def test_background_does_not_download_for_a_full_store(
    store: Store, autojump_clock: object, expect_log: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no room, it tries with one chunk at a time. Once there is room, it continues where it was."""
    expect_log("serving layer .* of .* from memory without storing it: no room")  # type: ignore[operator]
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    keep, refusals = store.keep, iter(range(len(FILES) + 3))

    def refuse(content: Content, index: int, data: bytes | memoryview) -> None:
        if next(refusals, None) is not None:
            raise StoreFull("no room")
        keep(content, index, data)

    monkeypatch.setattr(store, "keep", refuse)
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, 0)])
        await background.run()
    assert background.finished.is_set()
    sizes = [end - start for start, end in source.ranges]
    assert len(sizes) == 6 and max(sizes[1:5]) < 1000 < min(sizes[0], sizes[5])


async def test_background_gives_up_what_is_broken_at_the_source(store: Store, expect_log: object) -> None:
    """One bad chunk does not prevent the rest, and the image does not count as complete."""
    expect_log("is stalled")  # type: ignore[operator]
    layer, blob = make_layer(FILES)
    broken = bytearray(blob)
    broken[layer.pieces[50].chunk.member + 30] ^= 1
    source = ScriptedSource()
    source.blobs[layer.digest] = bytes(broken)
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, 0)])
        await background.run()
    assert not background.finished.is_set() and background.trouble
    assert measure_missing(store, [layer]).chunks == 1


async def test_server_without_ranges_is_streamed_once_for_the_background(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was planned as many ranges becomes one stream, as soon as it is known that there are no ranges."""
    monkeypatch.setattr("lazyfs.fetch.background.RUN_BYTES", 10_000)
    files = [(b"f%02d" % number, RANDOM.randbytes(5000)) for number in range(20)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.ignores_ranges = True
    async with open_fetcher(store, source) as fetcher:
        background = Background(store, fetcher, [Wanted(layer, 0)])
        await background.run()
        assert background.finished.is_set()
    assert len(source.ranges) == 2, source.ranges


async def test_paused_background_does_not_hold_up_other_processes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a reader of this process hangs, the background releases its claims: another process may be waiting for them."""
    monkeypatch.setattr("lazyfs.fetch.fetcher._PAUSE_LIMIT", 0.01)
    files = [(b"f%02d" % number, RANDOM.randbytes(300_000)) for number in range(10)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    with Store.open(store.directory.path) as other_store:
        async with (
            open_fetcher(store, source) as ours,
            open_fetcher(other_store, ScriptedSource(blob)) as theirs,
            trio.open_nursery() as nursery,
        ):
            source.gate = trio.Event()
            nursery.start_soon(ours.fetch, layer, layer.pieces[5:])
            await until(lambda: source.ranges)
            await wait_all_tasks_blocked(0.05)  # everything behind the middle is claimed
            opened, source.gate = source.gate, trio.Event()
            nursery.start_soon(read_piece, ours, layer, 0)
            await wait_all_tasks_blocked(0.05)
            opened.set()
            with trio.fail_after(10):
                assert await read_piece(theirs, layer, 9) == files[9][1]
            nursery.cancel_scope.cancel()


async def test_background_gives_up_nothing_but_what_is_broken(store: Store, autojump_clock: object, expect_log: object) -> None:
    """A run that ends before its last chunk, and has a broken one, gives up no other chunk."""
    expect_log("is stalled")  # type: ignore[operator]
    files = [(b"f%02d" % number, RANDOM.randbytes(100_000)) for number in range(10)]
    layer, blob = make_layer(files)
    broken = bytearray(blob)
    broken[layer.pieces[0].chunk.member + 1000] ^= 1
    source = ScriptedSource(blob)
    source.blobs = {layer.digest: bytes(broken)}
    with Store.open(store.directory.path) as other_store:
        other_store.claim(layer.pieces[9].chunk.digest)
        async with open_fetcher(store, source) as fetcher:
            background = Background(store, fetcher, [Wanted(layer, 0)])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(background.run)
                await wait_all_tasks_blocked(0.05)
                other_store.release(layer.pieces[9].chunk.digest)
        assert measure_missing(store, [layer]).chunks == 1
        assert not background.finished.is_set()
