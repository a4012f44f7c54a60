"""Batched jobs: the same results as one by one, with fewer calls."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import LocalError, StoreUnusable
from lazyfs.fetch.batcher import Batcher
from lazyfs.fetch.claim import ClaimRequest, claim_missing, claim_together
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.fetch.piece import Piece
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import FILES, RANDOM, ScriptedSource, make_layer, read_piece


def keep(store: Store, piece: Piece, content: bytes) -> None:
    store.keep(piece.content, piece.number, content)


def release(store: Store, *answers: Sequence[Piece] | None) -> None:
    for answer in answers:
        for piece in answer or ():
            store.release(piece.chunk.digest)


def test_batched_claims_equal_single_ones(store: Store) -> None:
    """For runs with stored pieces and gaps, with and without a wanted piece."""
    layer, _ = make_layer(FILES)
    for number in range(0, 400, 3):
        keep(store, layer.pieces[number], FILES[number][1])
    orders = []
    for first in range(0, 390, 10):
        pieces = layer.pieces[first : first + 10]
        wanted = RANDOM.choice([None, *pieces])
        orders.append(
            ClaimRequest(
                (*RANDOM.sample(pieces, RANDOM.randrange(1, 10)), *([wanted] if wanted else [])), wanted, RANDOM.random() < 0.5
            )
        )
    together = claim_together(store, orders)
    release(store, *together)
    for order, answer in zip(orders, together, strict=True):
        alone = claim_missing(store, order)
        release(store, alone)
        assert answer == alone
    assert any(together) and not all(together)


def test_a_chunk_of_another_file_is_left_to_a_separate_call(store: Store) -> None:
    """Copying takes longer than the queries, and others wait. Nothing is claimed for it; the others get their results."""
    shared = RANDOM.randbytes(3000)
    layer, _ = make_layer([(b"a", shared), (b"b", shared + b"more")], chunk_size=3000)
    keep(store, layer.pieces[0], shared)
    copied, lone = layer.pieces[1], layer.pieces[2]
    orders = [ClaimRequest((copied,), copied, gaps=False), ClaimRequest((lone,), lone, gaps=False)]
    assert claim_together(store, orders) == [None, [lone]]
    assert claim_missing(store, orders[0]) == []
    assert not store.missing(copied.content, 0, 1)


def test_stored_pieces_of_a_long_run_are_not_claimed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All claims of a store are locks on one file, which the kernel searches for each."""
    layer, _ = make_layer(FILES)
    for number in range(1, 400):
        keep(store, layer.pieces[number], FILES[number][1])
    claimed: list[bytes] = []
    claim = store.claim

    def count(digest: bytes) -> bool:
        claimed.append(digest)
        return claim(digest)

    monkeypatch.setattr(store, "claim", count)
    assert claim_missing(store, ClaimRequest(layer.pieces, layer.pieces[0], gaps=False)) == [layer.pieces[0]]
    assert claimed == [layer.pieces[0].chunk.digest]
    release(store, [layer.pieces[0]])


class Work:
    """Doubles numbers, and records the batches."""

    def __init__(self) -> None:
        self.trips: list[int] = []
        self.fails = False

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.trips.append(len(numbers))
        if self.fails:
            raise StoreUnusable("it is closed")
        return [2 * number for number in numbers]


async def test_jobs_that_arrive_together_are_batched() -> None:
    """The first one starts at once, and all others form the second batch. Each gets its own result."""
    work = Work()
    batcher = Batcher(work, trio.CapacityLimiter(2), at_once=1)
    got: dict[int, int] = {}

    async def do(number: int) -> None:
        got[number] = await batcher.submit(number)

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(do, number)
        assert got == {number: 2 * number for number in range(50)}
        got.clear()
    assert work.trips == [1, 16, 16, 16, 1] * 2


async def test_two_batches_at_a_time() -> None:
    """While one hangs, the others continue; then all are free again."""
    halted, came = threading.Event(), threading.Event()

    def work(numbers: Sequence[int]) -> list[int]:
        if 0 in numbers:
            came.set()
            assert halted.wait(20)
        return [2 * number for number in numbers]

    batcher = Batcher(work, trio.CapacityLimiter(2), at_once=2)
    got: dict[int, int] = {}

    async def do(number: int) -> None:
        got[number] = await batcher.submit(number)

    for _ in range(2):
        halted.clear()
        came.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(do, 0)
            await trio.to_thread.run_sync(came.wait)
            async with trio.open_nursery() as others:
                for number in range(1, 50):
                    others.start_soon(do, number)
            assert sorted(got) == list(range(1, 50))
            halted.set()
        assert got == {number: 2 * number for number in range(50)}
        got.clear()


async def test_all_jobs_of_a_batch_get_its_error() -> None:
    """No job keeps waiting, and the next one runs."""
    work = Work()
    batcher = Batcher(work, trio.CapacityLimiter(2), at_once=1)
    errors: list[str] = []

    async def do(number: int) -> None:
        try:
            await batcher.submit(number)
        except LocalError as error:
            errors.append(str(error))

    work.fails = True
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(do, number)
    assert errors == ["it is closed"] * 5
    work.fails = False
    assert await batcher.submit(4) == 8


async def test_an_interrupt_leaves_no_job_without_a_result() -> None:
    """It ends the program. Until then, no job takes it for a result, and the other jobs run."""

    def work(numbers: Sequence[int]) -> list[int]:
        if 1 in numbers:
            raise KeyboardInterrupt
        return list(numbers)

    batcher = Batcher(work, trio.CapacityLimiter(2), at_once=1)
    got: list[object] = []

    async def do(number: int) -> None:
        try:
            got.append(await batcher.submit(number))
        except KeyboardInterrupt:
            got.append("interrupted")

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(do, number)
    assert len(got) == 30
    assert 1 <= got.count("interrupted") <= 16, "those who went together"
    assert await batcher.submit(7) == 7


async def test_a_cancelled_caller_still_gets_its_result() -> None:
    """A claim has to be released."""
    batcher = Batcher(Work(), trio.CapacityLimiter(2), at_once=1)
    got: list[int] = []

    async def do(number: int) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            got.append(await batcher.submit(number))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(do, number)
    assert sorted(got) == [0, 2, 4]


async def test_readers_that_join_a_run_do_not_reach_into_its_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks at the pieces that there were when it began. The later reader still gets its bytes."""
    layer, blob = make_layer(FILES)
    source = ScriptedSource(blob)
    look = store.lacking
    late = [399]

    async def read(number: int) -> None:
        assert await read_piece(fetcher, layer, number) == FILES[number][1]

    def look_while_another_joins(wanted: Sequence[tuple[Content, int]]) -> list[bool]:
        found = look(wanted)
        if late:
            trio.from_thread.run_sync(nursery.start_soon, read, late.pop())
            trio.from_thread.run(wait_all_tasks_blocked, 0.1)
        return found

    monkeypatch.setattr(store, "lacking", look_while_another_joins)
    async with open_fetcher(store, source) as fetcher, trio.open_nursery() as nursery:
        fetcher._shared.rangeless.add(layer.digest)
        for number in range(20):  # more than are claimed together with others
            nursery.start_soon(read, number)
    assert source.ranges == [(0, layer.size)]
