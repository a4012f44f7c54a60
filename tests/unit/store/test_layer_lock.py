"""Layer locks: who fetches an eager layer, and who waits."""

from __future__ import annotations

from contextlib import closing

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from lazyfs.format.digest import Digest, digest_of, to_raw
from lazyfs.store.claims import Claims
from lazyfs.store.layer_lock import lock_layers
from lazyfs.store.store import Store
from tests.conftest import LogWatch

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


async def is_free(store: Store, digest: Digest) -> bool:
    """Whether another caller could take the lock now."""
    free = False

    async def taken(_: Digest) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        async with lock_layers(store, [digest], taken):
            free = True
    return free


async def test_a_layer_is_one_tasks_at_a_time(store: Store) -> None:
    """Also within one process. Other layers are free, and so is this one afterwards."""
    async with lock_layers(store, [A, B, A]):
        assert not await is_free(store, A)
        assert not await is_free(store, B)
        assert await is_free(store, C)
    assert await is_free(store, A)


async def test_a_layer_is_released_before_the_others(store: Store) -> None:
    """A caller that waits for a stored layer need not wait for the rest."""
    async with lock_layers(store, [A, B]) as locks:
        locks.release(A)
        assert await is_free(store, A)
        assert not await is_free(store, B)


async def test_a_waiter_gets_the_lock(store: Store) -> None:
    """`waiting` is called with the layer that it waits for, once."""
    waited_for: list[Digest] = []
    order: list[str] = []

    async def waiting(digest: Digest) -> None:
        waited_for.append(digest)

    async def second() -> None:
        async with lock_layers(store, [A, B], waiting):
            order.append("second")

    async with trio.open_nursery() as nursery:
        async with lock_layers(store, [B]):
            nursery.start_soon(second)
            while not waited_for:
                await trio.lowlevel.checkpoint()
            order.append("first")
    assert (waited_for, order) == ([B], ["first", "second"])


async def test_an_error_releases_the_locks(store: Store) -> None:
    """An error does not keep others out."""
    with pytest.raises(ValueError, match="wrong"):
        async with lock_layers(store, [A]):
            raise ValueError("wrong")
    assert await is_free(store, A)


async def test_a_stopped_process_does_not_block_others_for_long(
    store: Store, autojump_clock: MockClock, expect_log: LogWatch
) -> None:
    """After 20 s without a heartbeat, anybody may fetch the layer, but not keep it as a partial blob. 20 s for all its layers
    together."""
    expect_log("has made no progress for 20 s")
    with closing(Claims(store.directory.path / "claims")) as stopped:
        stopped.claim(to_raw(A))
        stopped.claim(to_raw(C))
        began = trio.current_time()
        async with lock_layers(store, [A, B, C]) as locks:
            assert trio.current_time() - began == pytest.approx(20, abs=1)
            assert (locks.holds(A), locks.holds(B), locks.holds(C)) == (False, True, False)
            locks.release(A)
        assert not stopped_is_free(store)


def stopped_is_free(store: Store) -> bool:
    """Whether the lock of the other process was taken from it."""
    with closing(Claims(store.directory.path / "claims")) as other:
        return other.claim(to_raw(A))


async def test_a_living_holder_is_waited_for(store: Store, autojump_clock: MockClock) -> None:
    """However long it takes, and also for a layer that it has not begun yet."""
    order: list[str] = []

    async def second() -> None:
        async with lock_layers(store, [B]) as locks:
            assert locks.holds(B)
            order.append("second")

    async with trio.open_nursery() as nursery:
        async with lock_layers(store, [A, B]):
            nursery.start_soon(second)
            for _ in range(100):
                await trio.sleep(2)
                store.partial_blobs.touch([B])  # as its own task does: the threads of this clock are late
            order.append("first")
    assert order == ["first", "second"]


async def test_heartbeats_are_sent_by_themselves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the locks are held. Nothing of them is left."""
    monkeypatch.setattr("lazyfs.store.layer_lock._HEARTBEAT", 0.001)
    async with lock_layers(store, [A]):
        first = store.partial_blobs.last_touched(A)
        with trio.fail_after(30):
            while store.partial_blobs.last_touched(A) == first:  # noqa: ASYNC110  a thread sets no event of ours
                await trio.sleep(0.001)
    assert store.partial_blobs.last_touched(A) is None
    assert not store.partial_blobs.files()
