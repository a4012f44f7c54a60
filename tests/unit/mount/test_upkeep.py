"""Upkeep in virtual time: sync, limit, scrub, and the refresh of overlays after each removal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import StoreUnusable
from lazyfs.mount import upkeep as upkeep_module
from lazyfs.mount.upkeep import Upkeep
from lazyfs.store.content import Content
from lazyfs.store.in_use import InUse
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch
from tests.unit.store.contents import flip, keep_all, noise

pytestmark = pytest.mark.usefixtures("autojump_clock")

SIZE = 65_536


@asynccontextmanager
async def running(loop: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop)
        yield
        nursery.cancel_scope.cancel()


def upkeeping(upkeep: Upkeep) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await upkeep.run(Supervisor(nursery))

    return run


async def until(condition: Callable[[], object]) -> None:
    """Threads take no virtual time: so many seconds are for ever, and no test waits for them."""
    with trio.fail_after(10**6):
        while not condition():  # noqa: ASYNC110  what changes is on disk
            await trio.sleep(1)


def arrive(store: Store, count: int) -> list[Content]:
    made = []
    for seed in range(count):
        made.append(keep_all(store, [noise(SIZE, seed)]))
        store.durability.make_durable()
    return made


def here(store: Store, made: Sequence[Content]) -> list[int]:
    return [number for number, missing in enumerate(store.missing_many(made)) if not missing]


async def test_what_arrives_becomes_durable(store: Store) -> None:
    """Within seconds, and again and again."""
    async with running(upkeeping(Upkeep(store, InUse))):
        for seed in range(3):
            keep_all(store, [noise(10, seed)])
            store.index.change()
            assert store.durability.is_pending()
            await until(lambda: not store.durability.is_pending())


async def test_a_disk_that_fails_is_reported_and_survived(
    store: Store, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads go on; the log says what is at stake: once, and once more when it had gone well meanwhile."""
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        if len(tries) != 3:
            raise StoreUnusable("the disk has failed")

    monkeypatch.setattr(store.durability, "make_durable", fail)
    expect_log("cannot sync what has arrived: the disk has failed")
    async with running(upkeeping(Upkeep(store, InUse))):
        await until(lambda: len(tries) > 6)
    assert caplog.text.count("cannot sync") == 2
    await Upkeep(store, InUse).stop()


async def test_the_limit_is_kept(store: Store) -> None:
    """What exceeds the limit is evicted, unmounted and old files first, and overlays are refreshed."""
    made = arrive(store, 20)
    gone: list[str] = []

    async def on_evicted(names: Sequence[str]) -> None:
        gone.extend(names)

    in_use = InUse({one.name for one in made[:2]})
    upkeep = Upkeep(store, lambda: in_use, announced=lambda name: name == made[2].name, on_evicted=on_evicted)
    async with running(upkeeping(upkeep)):
        await until(lambda: not store.durability.is_pending())
        assert gone == []
        limit = store.eviction.usage().used - 5 * SIZE
        store.eviction.set_limit(limit)
        await until(lambda: gone)
    left = here(store, made)
    assert {0, 1, 2, 19} <= set(left)
    assert 3 not in left
    assert store.eviction.usage().used <= limit
    assert {made[number].name for number in range(20) if number not in left} == set(gone)
    assert upkeep.evicted_objects == len(gone)
    assert upkeep.evicted_bytes == len(gone) * SIZE


async def test_only_one_process_makes_room(store: Store, directory: Path) -> None:
    """An exclusive process keeps the others from evicting: they do not know what it has announced."""
    made = arrive(store, 4)
    with Store.open(directory) as other:
        theirs, ours = Upkeep(other, InUse), Upkeep(store, InUse, exclusive=True)
        async with running(upkeeping(ours)):
            await until(lambda: ours._may_evict)
            with pytest.raises(StoreUnusable, match="another process is evicting"):
                await theirs.prune(everything=True, older_than=0)
            assert here(store, made) == [0, 1, 2, 3]
            assert (await ours.prune(everything=True, older_than=0)).objects == 4
        keep_all(store, [noise(SIZE, 0)])
        store.index.change()
        assert (await theirs.prune(everything=True, older_than=0)).objects == 1


async def test_prune_says_what_it_freed(store: Store, directory: Path) -> None:
    """What nothing mounted needs; everything, if asked; and what is free only when its readers end."""
    made = arrive(store, 3)
    upkeep = Upkeep(store, lambda: InUse({made[0].name}))
    with (directory / "objects" / made[1].name).open("rb"):
        freed = await upkeep.prune(everything=False, older_than=0)
    assert here(store, made) == [0]
    assert (freed.objects, freed.bytes, freed.held_bytes) == (2, 2 * SIZE, SIZE)
    assert (await upkeep.prune(everything=False, older_than=0)).objects == 0
    assert (await upkeep.prune(everything=True, older_than=3600)).objects == 0
    assert (await upkeep.prune(everything=True, older_than=0)).objects == 1


async def test_what_has_rotted_is_found(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """Bit rot is found without a reader, and overlays are refreshed; after a pause, the scrub begins again."""
    monkeypatch.setattr(upkeep_module, "_SCRUB_INTERVAL", 100.0)
    made = arrive(store, 5)
    flip(directory / "objects" / made[3].name)
    gone: list[str] = []

    async def on_evicted(names: Sequence[str]) -> None:
        gone.extend(names)

    expect_log("dropped damaged .*: its bytes do not match its digest")
    upkeep = Upkeep(store, InUse, on_evicted=on_evicted)
    async with running(upkeeping(upkeep)):
        await until(lambda: upkeep.scrub.rounds == 2)
    assert gone == [made[3].name]
    assert (upkeep.scrub.damaged, upkeep.scrub.chunks) == (1, 9)
    assert here(store, made) == [0, 1, 2, 4]


@pytest.mark.root
async def test_what_is_held_is_reported_again(store: Store, directory: Path, autojump_clock: MockClock) -> None:
    """An overlay that had the file open keeps it: it is refreshed again, at longer and longer intervals, until the file is released."""
    # What is measured is virtual time: it must not pass while a thread looks. So this loop runs exclusive, with few jumps.
    autojump_clock.autojump_threshold = 0.02
    made = arrive(store, 1)
    gone: list[float] = []
    enough = trio.Event()

    async def on_evicted(names: Sequence[str]) -> None:
        assert names == (made[0].name,)
        gone.append(trio.current_time())
        if len(gone) == 5:
            enough.set()

    upkeep = Upkeep(store, InUse, on_evicted=on_evicted)
    with (directory / "objects" / made[0].name).open("rb"):
        await upkeep.prune(everything=True, older_than=0)
        assert len(gone) == 2
        async with running(upkeep._release_periodically):
            await enough.wait()
    first, second, third = gone[2:]
    assert third - second > second - first >= 10
    autojump_clock.autojump_threshold = 0  # nothing is measured any more
    async with running(upkeep._release_periodically):
        await trio.sleep(3000)
    assert len(gone) == 5
