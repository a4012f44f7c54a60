"""Turns: who fetches a layer whole, and who waits."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from lazyfs.format.digest import Digest, digest_of
from lazyfs.store.store import Store
from lazyfs.whole.turn import turn

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


async def is_free(store: Store, digest: Digest) -> bool:
    """Whether somebody else could have a turn now."""
    free = False

    async def taken(_: Digest) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        async with turn(store, [digest], taken):
            free = True
    return free


async def test_a_layer_is_one_tasks_at_a_time(store: Store) -> None:
    """In one process too; other layers, and the same one afterwards, are free."""
    async with turn(store, [A, B, A]):
        assert not await is_free(store, A)
        assert not await is_free(store, B)
        assert await is_free(store, C)
    assert await is_free(store, A)


async def test_a_layer_is_let_go_before_the_others(store: Store) -> None:
    """Whoever waits for one that is here already need not wait for the rest."""
    async with turn(store, [A, B]) as let_go:
        let_go(A)
        assert await is_free(store, A)
        assert not await is_free(store, B)


async def test_whoever_waits_gets_his_turn(store: Store) -> None:
    """And is told for which layer he waits, once."""
    told: list[Digest] = []
    order: list[str] = []

    async def waiting(digest: Digest) -> None:
        told.append(digest)

    async def second() -> None:
        async with turn(store, [A, B], waiting):
            order.append("second")

    async with trio.open_nursery() as nursery:
        async with turn(store, [B]):
            nursery.start_soon(second)
            while not told:
                await trio.lowlevel.checkpoint()
            order.append("first")
    assert (told, order) == ([B], ["first", "second"])


async def test_an_error_ends_the_turn(store: Store) -> None:
    """Nothing that goes wrong keeps others out."""
    with pytest.raises(ValueError, match="wrong"):
        async with turn(store, [A]):
            raise ValueError("wrong")
    assert await is_free(store, A)
