"""The cost of a chunk does not depend on the number of chunks of its file. Counted in steps of sqlite, because times mean
nothing on a busy machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from lazyfs.fetch.background import Background, Wanted, cut_runs, missing_pieces
from lazyfs.fetch.claim import ClaimRequest, claim_missing
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.fetch.flight import SourceFlights
from lazyfs.fetch.piece import LayerBlob
from lazyfs.fetch.window import Windows, choose_run
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Chunk, Entry
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import RANDOM, ScriptedSource, make_layer, read_piece

FEW, MANY = 150, 1500
UNIT = 10
"""Instructions of sqlite's virtual machine per counted step."""

Work = Callable[[Store, Fetcher, LayerBlob], Awaitable[None]]


class Steps:
    """Counts what sqlite does for a store."""

    def __init__(self, store: Store) -> None:
        self.count = 0
        database = store.index._database
        for connection in (database._reader, database._writer):
            assert connection is not None
            connection.set_progress_handler(self._step, UNIT)

    def _step(self) -> int:
        self.count += 1
        return 0


async def fetch(store: Store, fetcher: Fetcher, layer: LayerBlob) -> None:
    await Background(store, fetcher, [Wanted(layer, 0)]).run()


async def walk(store: Store, fetcher: Fetcher, layer: LayerBlob) -> None:
    for number in range(len(layer.pieces)):
        await read_piece(fetcher, layer, number)


async def walk_back(store: Store, fetcher: Fetcher, layer: LayerBlob) -> None:
    for number in reversed(range(len(layer.pieces))):
        await read_piece(fetcher, layer, number)


async def look_up(store: Store, fetcher: Fetcher, layer: LayerBlob) -> None:
    """As the gate does for each lookup of an incomplete file."""
    content = layer.pieces[0].content
    for number in range(len(layer.pieces) // 2):
        store.keep(content, number, bytes(content.chunk_size(number)))
    for _ in layer.pieces:
        assert not await trio.to_thread.run_sync(store.publish, content)


async def cost(folder: Path, work: Work, data: bytes) -> float:
    """Steps per chunk, for a file in chunks of 10 bytes."""
    layer, blob = make_layer([(b"large", data)], chunk_size=10)
    with Store.open(folder) as store:
        steps = Steps(store)
        async with open_fetcher(store, ScriptedSource(blob)) as fetcher:
            await work(store, fetcher, layer)
        if work is not look_up:
            assert not missing_pieces(store, layer.pieces)
            store.index.change()
            assert store.publish(layer.pieces[0].content)
        return steps.count / len(layer.pieces)


@pytest.mark.parametrize("work", [fetch, walk, walk_back, look_up], ids=lambda work: work.__name__)
async def test_a_chunk_of_a_large_file_costs_what_one_of_a_small_file_does(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten times as many chunks, no chunk costs more: there is no loop over all chunks for each of them."""
    monkeypatch.setattr("lazyfs.fetch.window.FIRST", 200)  # as if the chunks were large
    data = RANDOM.randbytes(10 * MANY)
    few = await cost(tmp_path / "few", work, data[: 10 * FEW])
    many = await cost(tmp_path / "many", work, data)
    assert many < 1.5 * few + 20


async def test_equal_chunks_cost_no_more(tmp_path: Path) -> None:
    """A sparse file is one chunk in many positions: it is fetched once, and filling one position is not a pass over all of
    them."""
    few = await cost(tmp_path / "few", fetch, bytes(10 * FEW))
    many = await cost(tmp_path / "many", fetch, bytes(10 * MANY))
    assert many < 1.5 * few + 20


async def test_a_source_that_fails_often_costs_no_more(
    store: Store, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    """Only a failed run is tried again: what is behind it is not looked up each time."""
    expect_log("is stalled: the source has gone away")
    monkeypatch.setattr("lazyfs.fetch.background.MOST_PIECES", 10)
    layer, blob = make_layer([(b"large", RANDOM.randbytes(10_000))], chunk_size=10)
    source = ScriptedSource(blob)
    looks: list[int] = []

    def look(store: Store, pieces: list[object]) -> object:
        looks.append(len(pieces))
        return missing_pieces(store, pieces)  # type: ignore[arg-type]

    monkeypatch.setattr("lazyfs.fetch.background.missing_pieces", look)
    async with open_fetcher(store, source) as fetcher:
        source.fails = 50
        await Background(store, fetcher, [Wanted(layer, 0)]).run()
    assert not missing_pieces(store, layer.pieces)
    assert len(looks) >= 50 and sum(looks) < 4 * len(layer.pieces)


def test_runs_are_of_so_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim is a lock, and a lock costs more the more there are: of a million tiny chunks, the background and a reader claim
    only some at a time."""
    monkeypatch.setattr("lazyfs.fetch.window.FIRST", 16 << 20)
    layer, _ = make_layer([(b"tiny", RANDOM.randbytes(10_000))], chunk_size=1)
    runs = cut_runs(layer.pieces)
    assert [len(run) for run in runs] == [4096, 4096, 1808]
    assert [piece for run in runs for piece in run] == list(layer.pieces)
    assert len(choose_run(layer, layer.pieces[7], Windows(), SourceFlights(), crowded=False)) == 4096


def test_a_member_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched and inflated from its start, however little of it is wanted: once for all its chunks."""
    monkeypatch.setattr("lazyfs.fetch.background.RUN_BYTES", 50)
    monkeypatch.setattr("lazyfs.fetch.background.MOST_PIECES", 3)
    monkeypatch.setattr("lazyfs.fetch.window.MOST_PIECES", 3)
    chunks = [
        Chunk(0, 1, sha256(b"%d" % number).digest(), start, number % 8, start + 100)
        for number in range(24)
        for start in (number // 8 * 100,)
    ]
    files = [Entry(b"%d" % number, "reg", size=1, chunks=(chunk,)) for number, chunk in enumerate(chunks)]
    layer = LayerBlob(digest_of(b"blob"), 300, 300, files)
    assert [len(run) for run in cut_runs(layer.pieces)] == [8, 8, 8]
    assert len(choose_run(layer, layer.pieces[0], Windows(), SourceFlights(), crowded=False)) == 8


def test_some_is_copied_and_then_the_run_starts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one thread copies before a request is bounded. The reader's own chunk comes first."""
    monkeypatch.setattr("lazyfs.fetch.claim._COPIED", 25)
    zeros, _ = make_layer([(b"one", bytes(10))])
    store.keep(zeros.pieces[0].content, 0, bytes(10))
    layer, _ = make_layer([(b"sparse", bytes(100))], chunk_size=10)
    assert not claim_missing(store, ClaimRequest(layer.pieces, layer.pieces[7], True))
    missing = store.missing(layer.pieces[0].content, 0, 10)
    assert len(missing) == 7 and 7 not in missing
