"""The fetcher, with a scripted source and a real store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import DigestMismatch, StoreUnusable, Unreachable
from lazyfs.fetch import shared as module
from lazyfs.fetch.background import measure_missing
from lazyfs.fetch.fetcher import READ_DEADLINE, open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.fetch.unpack import Packed, Unpacked
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.member import compress_member
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import FILES, RANDOM, ScriptedSource, make_layer, pass_time, read_piece, settle, until


async def test_a_read_returns_the_right_bytes_and_keeps_them(store: Store) -> None:
    """The first read fetches, the second is served from the store."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    async with open_fetcher(store, source) as fetcher:
        assert await read_piece(fetcher, layer, 7) == FILES[7][1]
        await wait_all_tasks_blocked()
        asked = len(source.ranges)
        assert await read_piece(fetcher, layer, 7) == FILES[7][1]
        assert len(source.ranges) == asked == 1
        assert bytes(await fetcher.read(layer, layer.pieces[7], 5, 10)) == FILES[7][1][5:15]


async def test_sixty_four_readers_of_one_cold_chunk_are_one_request(store: Store) -> None:
    """Readers that come while a chunk is in flight wait for it."""
    layer, blob = make_layer([(b"big", RANDOM.randbytes(300_000))])
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    results: list[bytes] = []

    async def reader() -> None:
        results.append(await read_piece(fetcher, layer, 0))

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(reader)
        await wait_all_tasks_blocked(0.05)
        source.gate.set()
    assert len(source.ranges) == 1
    assert len(results) == 64 and len(set(results)) == 1


async def test_a_walk_takes_few_requests(store: Store) -> None:
    """Files that are read one after the other are fetched in longer and longer runs."""
    files = [(b"f%05d" % number, RANDOM.randbytes(4000)) for number in range(1000)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    async with open_fetcher(store, source) as fetcher:
        for number, (_, content) in enumerate(files):
            assert await read_piece(fetcher, layer, number) == content
    assert len(source.ranges) <= 15


async def test_lone_misses_fetch_little(store: Store) -> None:
    """Reads far from each other do not fetch the whole layer."""
    files = [(b"f%05d" % number, RANDOM.randbytes(4000)) for number in range(2000)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    async with open_fetcher(store, source) as fetcher:
        for number in range(1900, 0, -100):
            await read_piece(fetcher, layer, number)
    assert sum(end - start for start, end in source.ranges) < 19 * (40 << 10)


async def test_equal_chunks_are_fetched_once(store: Store) -> None:
    """A chunk that another file of the store has is copied, not fetched. Within a run, it is requested once."""
    same = RANDOM.randbytes(500_000)
    first, first_blob = make_layer([(b"a", same), (b"b", same)], chunk_size=100_000)
    second, second_blob = make_layer([(b"c", same + b"more")], chunk_size=100_000)
    source = ScriptedSource(first_blob, second_blob)
    async with open_fetcher(store, source) as fetcher:
        for number in range(len(first.pieces)):
            await read_piece(fetcher, first, number)
        received = fetcher.statistics().received
        for number in range(5):
            await read_piece(fetcher, second, number)
        assert fetcher.statistics().received == received < 510_000
        assert await read_piece(fetcher, second, 5) == b"more"


async def test_wrong_bytes_are_an_error_and_are_not_kept(store: Store) -> None:
    """The chunk that was changed on the way fails, its neighbours are served, and the next read tries again."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    start = layer.pieces[3].chunk.member
    broken = bytearray(blob)
    broken[start + 30] ^= 1
    source.blobs[layer.digest] = bytes(broken)
    async with open_fetcher(store, source) as fetcher:
        with pytest.raises(Exception, match="offset"):
            await read_piece(fetcher, layer, 3)
        assert await read_piece(fetcher, layer, 4) == FILES[4][1]
        source.blobs[layer.digest] = blob
        assert await read_piece(fetcher, layer, 3) == FILES[3][1]
    assert sum(fetcher.statistics().errors.values()) == 1


async def test_a_chunk_of_other_content_is_a_digest_mismatch(store: Store) -> None:
    """Valid gzip of other bytes is rejected by its digest."""
    layer, _ = make_layer([(b"a", b"expected content")])
    _, lying = make_layer([(b"a", b"something  else!")])
    source = ScriptedSource()
    source.blobs[layer.digest] = lying
    async with open_fetcher(store, source) as fetcher:
        with pytest.raises(DigestMismatch, match="should hash to sha256:"):
            await read_piece(fetcher, layer, 0)
    assert measure_missing(store, [layer]).chunks == 1


async def test_a_failed_source_is_an_error_now_and_fine_later(store: Store) -> None:
    """EIO as long as the cause lasts; the same read succeeds afterwards."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.fails = 1
    async with open_fetcher(store, source) as fetcher:
        with pytest.raises(Unreachable):
            await read_piece(fetcher, layer, 0)
        assert await read_piece(fetcher, layer, 0) == FILES[0][1]


async def test_a_reader_that_joined_a_failing_run_gets_its_own_try(store: Store) -> None:
    """A run that fails for its first chunk does not fail the readers that only joined it."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.gate, source.fails = trio.Event(), 1
    got: list[bytes] = []

    async def first() -> None:
        with pytest.raises(Unreachable):
            await read_piece(fetcher, layer, 0)

    async def joined() -> None:
        got.append(await read_piece(fetcher, layer, 1))

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await until(lambda: source.ranges)
        nursery.start_soon(joined)
        await wait_all_tasks_blocked(0.05)
        source.gate.set()
    assert got == [FILES[1][1]]


async def test_a_cancelled_reader_leaves_the_bytes_for_the_next(store: Store) -> None:
    """Cancellation ends the wait, not the run."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    async with open_fetcher(store, source) as fetcher:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_piece, fetcher, layer, 9)
            await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        source.gate.set()
        assert await read_piece(fetcher, layer, 9) == FILES[9][1]
    assert len(source.ranges) == 1


async def test_read_gives_up_at_its_deadline(store: Store, autojump_clock: trio.testing.MockClock) -> None:
    """A source never answers: after a virtual minute, the error names image, layer and object."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    autojump_clock.autojump_threshold = math.inf  # it would jump while a thread looks into the store

    async def reader() -> None:
        with pytest.raises(Unreachable, match=f"deliver layer {layer.digest} at .* of object {layer.pieces[0].content.name}"):
            await read_piece(fetcher, layer, 0)

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await until(lambda: source.ranges)
        await wait_all_tasks_blocked()
        autojump_clock.jump(READ_DEADLINE - 1)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        autojump_clock.jump(2)


async def test_server_without_ranges_is_streamed_once(store: Store) -> None:
    """After the first refusal, the whole blob is fetched once, and serves every read."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.ignores_ranges = True
    async with open_fetcher(store, source) as fetcher:
        for number in (390, 3, 200):
            assert await read_piece(fetcher, layer, number) == FILES[number][1]
    assert source.ranges.count((0, layer.size)) == 1


async def test_a_crowd_does_not_stream_a_layer_without_ranges_more_than_once(store: Store) -> None:
    """Runs that wait for a slot when that is found out leave their pieces to the run that fetches everything."""
    files = [(b"f%05d" % number, RANDOM.randbytes(4000)) for number in range(2000)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.ignores_ranges = True

    async def reader(number: int) -> None:
        assert await read_piece(fetcher, layer, number) == files[number][1]

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        for number in range(0, 2000, 20):
            nursery.start_soon(reader, number)
    assert source.ranges.count((0, layer.size)) == 1
    assert measure_missing(store, [layer]).chunks == 0


async def test_stored_chunks_are_read_while_all_slots_wait_for_a_dead_source(store: Store) -> None:
    """The neighbours of a miss are readable while its run waits for a slot."""
    files = [(b"f%02d" % number, RANDOM.randbytes(1 << 20 if number % 2 else 2000)) for number in range(20)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    async with open_fetcher(store, source) as fetcher:
        assert await read_piece(fetcher, layer, 18) == files[18][1]
    source.gate = trio.Event()
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        for number in (1, 3, 5, 7, 9, 11, 13, 15):  # as many as there are slots for large runs
            nursery.start_soon(read_piece, fetcher, layer, number)
        await until(lambda: len(source.ranges) >= 9)
        nursery.start_soon(read_piece, fetcher, layer, 17)  # its run would begin beside a stored chunk
        await wait_all_tasks_blocked(0.05)
        assert len(source.ranges) == 9
        with trio.fail_after(10):
            assert await read_piece(fetcher, layer, 18) == files[18][1]
        nursery.cancel_scope.cancel()


async def test_an_index_that_fails_while_a_run_waits_is_its_readers_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end the fetcher: the next read is served."""
    files = [(b"f%02d" % number, RANDOM.randbytes(1 << 20)) for number in range(20)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    got: list[bytes] = []

    async def reader(number: int) -> None:
        got.append(await read_piece(fetcher, layer, number))

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        for number in range(0, 16, 2):
            nursery.start_soon(reader, number)
        await until(lambda: len(source.ranges) == 8)
        await wait_all_tasks_blocked()
        with monkeypatch.context() as patch, pytest.raises(StoreUnusable, match="the index is away"):

            def fail(*_: object) -> list[bool]:
                raise StoreUnusable("the index is away")

            patch.setattr(store, "lacking", fail)
            await read_piece(fetcher, layer, 16)
        source.gate.set()
        assert await read_piece(fetcher, layer, 16) == files[16][1]
    assert len(got) == 8


async def test_the_runs_before_are_signs_of_life(store: Store, autojump_clock: trio.testing.MockClock) -> None:
    """While a run waits for a slot: their bytes, and no others. After that, its own."""
    autojump_clock.autojump_threshold = math.inf
    files = [(b"f%02d" % number, RANDOM.randbytes(1 << 20)) for number in range(20)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.rate = 100_000
    waits, small = layer.pieces[16:17], layer.pieces[18:19]
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        assert fetcher.signs_of_life(waits) == 0
        for number in range(0, 18, 2):
            nursery.start_soon(read_piece, fetcher, layer, number)
            await settle(fetcher)
        await pass_time(autojump_clock, fetcher, 1)
        seen = [fetcher.signs_of_life(waits)]
        for _ in range(5):
            await pass_time(autojump_clock, fetcher, 1)
            seen.append(fetcher.signs_of_life(waits))
        assert [later - earlier for earlier, later in pairwise(seen)] == [800_000] * 5
        assert fetcher.signs_of_life(small) == 0
        await pass_time(autojump_clock, fetcher, 7)
        own = fetcher.signs_of_life(waits)
        await pass_time(autojump_clock, fetcher, 1)
        assert fetcher.signs_of_life(waits) - own == 100_000
        await pass_time(autojump_clock, fetcher, 10)
        assert fetcher.signs_of_life(waits) == 0


async def test_many_lone_misses_fetch_only_what_is_read(store: Store) -> None:
    """The first few fetch their neighbours. After them, readers wait for slots, and neighbours would be in their way."""
    files = [(b"f%05d" % number, RANDOM.randbytes(4000)) for number in range(2000)]
    layer, blob = make_layer(files)
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    wanted = range(0, 2000, 30)
    got: dict[int, bytes] = {}

    async def reader(number: int) -> None:
        got[number] = await read_piece(fetcher, layer, number)

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        for number in wanted:
            nursery.start_soon(reader, number)
        await until(lambda: len(source.ranges) >= 48)
        await wait_all_tasks_blocked(0.05)
        assert len(source.ranges) == 48
        source.gate.set()
    assert got == {number: files[number][1] for number in wanted}
    assert len(source.ranges) == len(wanted)
    lengths = [end - start for start, end in source.ranges]
    assert sum(length > 20_000 for length in lengths) == 8 and sum(length < 5000 for length in lengths) == len(wanted) - 8


async def test_a_byte_of_what_inflates_to_much_goes_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is in memory as a whole: a hostile TOC puts a chunk of one byte at the end of 64 MiB."""
    packed = compress_member(bytes(300_000) + b"x")
    chunk = Chunk(0, 1, hashlib.sha256(b"x").digest(), 0, 300_000, len(packed))
    layer = LayerBlob(digest_of(packed), len(packed), len(packed), [Entry(b"f", "reg", size=1, chunks=(chunk,))])
    gathered: list[int] = []
    unpack_together = module.unpack_together

    def count(store: Store, jobs: Sequence[Packed]) -> list[list[Unpacked]]:
        gathered.append(len(jobs))
        return unpack_together(store, jobs)

    monkeypatch.setattr(module, "unpack_together", count)
    small, blob = make_layer([(b"small", b"few bytes")])
    async with open_fetcher(store, ScriptedSource(packed, blob)) as fetcher:
        assert await read_piece(fetcher, layer, 0) == b"x"
        assert not gathered
        assert await read_piece(fetcher, small, 0) == b"few bytes"
    assert gathered == [1]


async def test_a_crowd_that_walks_takes_long_steps(store: Store) -> None:
    """64 readers that share the files of a layer in order: the neighbours are what the others want next."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    rest = iter(range(len(FILES)))

    async def reader() -> None:
        for number in rest:
            assert await read_piece(fetcher, layer, number) == FILES[number][1]

    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(reader)
    assert len(source.ranges) < 40


async def test_an_object_is_created_although_its_chunk_arrives_for_another_file(store: Store) -> None:
    """The bytes of a file are in flight as a chunk of a larger file: it counts as stored when it is, under its own name."""
    shared = RANDOM.randbytes(100_000)
    layer, blob = make_layer([(b"large", shared + FILES[0][1]), (b"small", shared)], chunk_size=100_000)
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    chunk, small = layer.pieces[0], layer.pieces[2]
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:

        async def fetch() -> None:
            assert await fetcher.fetch_object(layer, small)
            assert Path(store.directory.objects + small.content.name).read_bytes() == shared

        nursery.start_soon(fetcher.read, layer, chunk, 0, 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(fetch)
        await wait_all_tasks_blocked()
        source.gate.set()


async def test_readers_get_an_error_when_their_fetcher_closes(store: Store) -> None:
    """The image is gone: its readers ask another one with the same file, without waiting for their deadline."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    source.gate = trio.Event()
    async with trio.open_nursery() as nursery:

        async def wait(number: int) -> None:
            with pytest.raises(Unreachable):
                await fetcher.fetch_object(layer, layer.pieces[number])

        async with open_fetcher(store, source) as fetcher:
            for number in range(0, 400, 5):  # more than the maximum of concurrent requests
                nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await wait(1)
