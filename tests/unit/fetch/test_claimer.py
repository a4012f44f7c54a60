"""Claims made together: the same as made one by one, in fewer trips to a thread."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from lazyfs.errors import LocalError, StoreUnusable
from lazyfs.fetch import claimer as module
from lazyfs.fetch.claim import Order, claim_missing, claim_together
from lazyfs.fetch.claimer import Claimer
from lazyfs.fetch.piece import Piece
from lazyfs.store.store import Store
from tests.unit.fetch.scripted import FILES, RANDOM, make_layer


def keep(store: Store, piece: Piece, content: bytes) -> None:
    store.keep(piece.content, piece.number, content)


def release(store: Store, *answers: Sequence[Piece] | None) -> None:
    for answer in answers:
        for piece in answer or ():
            store.release(piece.chunk.digest)


def test_together_is_as_one_by_one(store: Store) -> None:
    """Of runs in which pieces are here, and gaps, with and without a piece that all depends on."""
    layer, _ = make_layer(FILES)
    for number in range(0, 400, 3):
        keep(store, layer.pieces[number], FILES[number][1])
    orders = []
    for first in range(0, 390, 10):
        pieces = layer.pieces[first : first + 10]
        wanted = RANDOM.choice([None, *pieces])
        orders.append(
            Order(RANDOM.sample(pieces, RANDOM.randrange(1, 10)) + ([wanted] if wanted else []), wanted, RANDOM.random() < 0.5)
        )
    together = claim_together(store, orders)
    release(store, *together)
    for order, answer in zip(orders, together, strict=True):
        alone = claim_missing(store, order)
        release(store, alone)
        assert answer == alone
    assert any(together) and not all(together)


def test_what_lies_in_another_file_is_left_to_a_run_of_its_own(store: Store) -> None:
    """To copy it takes longer than to ask, and others wait. Nothing is claimed for it; the others are answered."""
    shared = RANDOM.randbytes(3000)
    layer, _ = make_layer([(b"a", shared), (b"b", shared + b"more")], chunk_size=3000)
    keep(store, layer.pieces[0], shared)
    copied, lone = layer.pieces[1], layer.pieces[2]
    orders = [Order([copied], copied, gaps=False), Order([lone], lone, gaps=False)]
    assert claim_together(store, orders) == [None, [lone]]
    assert claim_missing(store, orders[0]) == []
    assert not store.missing(copied.content, 0, 1)


async def test_runs_that_begin_together_ask_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first goes at once; all others go with the second. Each gets its own."""
    layer, _ = make_layer(FILES)
    asked: list[int] = []

    def count(store: Store, orders: Sequence[Order]) -> list[list[Piece] | None]:
        asked.append(len(orders))
        return claim_together(store, orders)

    monkeypatch.setattr(module, "claim_together", count)
    claimer = Claimer(store, trio.CapacityLimiter(2))
    got: dict[int, list[Piece]] = {}

    async def claim(number: int) -> None:
        got[number] = await claimer.claim(Order([layer.pieces[number]], layer.pieces[number], gaps=False))

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(claim, number)
        assert got == {number: [layer.pieces[number]] for number in range(50)}
        release(store, *got.values())
    assert asked == [1, 49, 1, 49]


async def test_an_error_is_everybodys_who_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits on; the next one asks again."""
    layer, _ = make_layer(FILES)
    claimer = Claimer(store, trio.CapacityLimiter(2))
    told: list[LocalError] = []

    async def claim(number: int) -> None:
        try:
            await claimer.claim(Order([layer.pieces[number]], None, gaps=False))
        except LocalError as error:
            told.append(error)

    def fail(*_: object) -> list[list[Piece] | None]:
        raise StoreUnusable("it is closed")

    with monkeypatch.context() as patch:
        patch.setattr(module, "claim_together", fail)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(claim, number)
    assert [str(error) for error in told] == ["it is closed"] * 5
    assert await claimer.claim(Order([layer.pieces[0]], None, gaps=False)) == [layer.pieces[0]]


async def test_who_is_cancelled_still_gets_what_was_claimed_for_him(store: Store) -> None:
    """He has to release it."""
    layer, _ = make_layer(FILES)
    claimer = Claimer(store, trio.CapacityLimiter(2))
    got: list[list[Piece]] = []

    async def claim(number: int) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            got.append(await claimer.claim(Order([layer.pieces[number]], None, gaps=False)))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(claim, number)
    assert sorted(piece.chunk.member for answer in got for piece in answer) == [piece.chunk.member for piece in layer.pieces[:3]]
