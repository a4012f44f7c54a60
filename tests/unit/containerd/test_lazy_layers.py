"""Lazy layers become live, are pulled and end, in virtual time, with a scripted registry."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.containerd.living import LINGER, Setting, ended, living
from tests.unit.containerd.scripted import ScriptedImage


async def test_a_layer_lingers_and_ends(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Unused, it is kept for the next container a while; then it goes, and a while later the connections to its repository."""
    async with living(store, image) as setting:
        live = setting.use()
        assert not setting.catalog.is_complete, "what it holds is not known yet, and the gate waits for it"
        await live.known()
        assert setting.catalog.is_complete and setting.holds()
        live.uses.change(-1)
        await trio.sleep(LINGER / 2)
        assert setting.use() is live
        await trio.sleep(10 * LINGER)
        assert setting.layers.live == {live.name: live}
        live.uses.change(-1)
        await trio.sleep(LINGER)
        assert not setting.layers.live and not setting.holds() and not setting.registry.closed
        await trio.sleep(LINGER)
        assert setting.registry.closed
        assert not setting.registry.ranges and not setting.registry.asked, "all that it takes is in the store"


async def test_a_use_is_counted_for_each(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """A layer under two roots lives until both are gone."""
    async with living(store, image) as setting:
        live = setting.use()
        assert setting.use() is live
        live.uses.change(-1)
        await trio.sleep(10 * LINGER)
        assert setting.holds()
        live.uses.change(-1)
        await trio.sleep(LINGER)
        assert not setting.layers.live


async def test_layers_share_their_repository(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """One source and one fetcher for all that come from there; it is closed after the last, and the next layer opens another."""
    async with living(store, image) as setting:
        first, second = setting.use(0), setting.use(1)
        await first.known()
        await second.known()
        assert setting.opened == 1 and first.source is second.source
        first.uses.change(-1)
        await trio.sleep(3 * LINGER)
        assert not setting.registry.closed and setting.holds(1) and not setting.holds(0)
        second.uses.change(-1)
        await trio.sleep(3 * LINGER)
        assert setting.registry.closed
        await setting.use(0).known()
        assert setting.opened == 2 and not setting.registry.closed


async def test_a_repository_that_is_ending_is_not_used_again(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Its fetcher is closed: a user that comes while its connections are closing gets new ones."""
    async with living(store, image) as setting:
        old = setting.registry
        old.may_close = trio.Event()
        live = setting.use()
        await live.known()
        live.uses.change(-1)
        await trio.sleep(3 * LINGER)
        assert not old.closed
        await setting.use().known()
        assert setting.opened == 2 and setting.registry is not old
        old.may_close.set()
        await wait_all_tasks_blocked()
        assert old.closed and not setting.registry.closed and setting.holds()


async def test_a_toc_that_was_lost_is_fetched_again(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """While the registry is away, the reason is logged once and reported, and readers wait; afterwards everything arrives."""
    expect_log("cannot fetch the TOC of layer sha256:.*: the registry is away")
    async with trio.open_nursery() as nursery:
        setting = Setting(store, image, nursery)
        setting.registry.away = True
        live = setting.use()
        await trio.sleep(300)
        assert live.trouble == "the registry is away" and not live.is_known and not setting.catalog.is_complete
        assert 5 < len(setting.registry.ranges) < 15, "ever slower"
        setting.registry.away = False
        await live.known()
        assert not live.trouble and setting.catalog.is_complete and setting.holds()
        nursery.cancel_scope.cancel()


async def test_what_is_broken_at_the_source_is_given_up(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """The pull ends, the layer with it, and it is not called complete: after a restart it is looked at again."""
    expect_log("is stalled")
    async with living(store, image) as setting:
        broken = bytearray(image.blobs[0])
        broken[image.layer(0).pieces[0].chunk.member + 30] ^= 1
        setting.registry.blobs[image.lazy[0].digest] = bytes(broken)
        live = setting.pull()
        await ended(live)
        assert live.source.trouble and setting.missing() == 1
        await trio.sleep(3 * LINGER)
        assert not setting.layers.live
    async with living(store, image) as setting:
        await ended(setting.pull())
        assert not setting.missing()
