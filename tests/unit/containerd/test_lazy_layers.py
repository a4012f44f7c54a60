"""Lazy layers that come to life, are pulled, and end, in virtual time, against a registry that a test holds in its hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.containerd.lazy_layers import LazyLayers, LiveLayer, name_of
from lazyfs.fetch.background import measure_missing
from lazyfs.gate.catalog import Catalog
from lazyfs.gate.inode import inode_of
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.containerd.scripted import REPOSITORY, ScriptedImage, ScriptedRegistry

LINGER = 31.0


class Setting:
    """The lazy layers of a daemon of which nothing else is there."""

    def __init__(self, store: Store, image: ScriptedImage, nursery: trio.Nursery, *, background: bool = True) -> None:
        self._image = image
        self._store = store
        self.registries = [image.registry()]
        """The last one will be, or is, whom the repository's name leads to; those before it were opened earlier."""
        self.opened = 0
        self.catalog = Catalog()
        self.catalog.begin()
        self.layers = LazyLayers(store, self.catalog, nursery, self._open, background=background)

    @property
    def registry(self) -> ScriptedRegistry:
        return self.registries[-1]

    def _open(self, repository: str) -> ScriptedRegistry:
        assert repository == REPOSITORY
        self.opened += 1
        if self.opened > len(self.registries):
            self.registries.append(self._image.registry())
        return self.registry

    def keep_tocs(self) -> None:
        """As when the layers were resolved."""
        for number, lazy in enumerate(self._image.lazy):
            self._store.keep_document(lazy.toc_digest, self._image.toc(number))

    def use(self, number: int = 0) -> LiveLayer:
        return self.layers.use(self._image.lazy[number])

    def pull(self, number: int = 0) -> LiveLayer:
        """As for a snapshot."""
        self.layers.add(self._image.lazy[number])
        self.layers.pull(self._image.lazy[number])
        return self.layers.live[name_of(self._image.lazy[number])]

    def stop(self, number: int = 0) -> None:
        """Its snapshot is removed."""
        self.layers.drop(self._image.lazy[number])

    def missing(self, number: int = 0) -> int:
        return measure_missing(self._store, [self._image.layer(number)]).chunks

    def holds(self, number: int = 0) -> bool:
        """Whether the gate would find who brings the layer's first file."""
        return bool(self.catalog.find(inode_of(self._image.layer(number).pieces[0].content.name)))


@asynccontextmanager
async def living(store: Store, image: ScriptedImage, *, background: bool = True) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        setting = Setting(store, image, nursery, background=background)
        setting.keep_tocs()
        yield setting
        nursery.cancel_scope.cancel()


async def test_a_layer_lingers_and_ends(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Unused, it is kept for the next container a while; then it goes, and a while later the connections to its repository."""
    async with living(store, image) as it:
        live = it.use()
        assert not it.catalog.is_complete, "what it holds is not known yet, and the gate waits for it"
        await live.indexed.wait()
        assert it.catalog.is_complete and it.holds()
        it.layers.leave(live.name)
        await trio.sleep(LINGER / 2)
        assert it.use() is live
        await trio.sleep(10 * LINGER)
        assert it.layers.live == {live.name: live}
        it.layers.leave(live.name)
        await trio.sleep(LINGER)
        assert not it.layers.live and not it.holds() and not it.registry.closed
        await trio.sleep(LINGER)
        assert it.registry.closed
        assert not it.registry.ranges and not it.registry.asked, "all that it takes is in the store"


async def test_a_use_is_counted_for_each(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """A layer under two roots lives until both are gone; an unknown one that somebody leaves is nothing."""
    async with living(store, image) as it:
        assert it.use() is it.use()
        name = name_of(image.lazy[0])
        it.layers.leave(name)
        await trio.sleep(10 * LINGER)
        assert it.holds()
        it.layers.leave(name)
        await trio.sleep(LINGER)
        it.layers.leave(name)
        assert not it.layers.live


async def test_layers_share_their_repository(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """One source and one fetcher for all that come from there; it is closed after the last, and the next layer opens another."""
    async with living(store, image) as it:
        first, second = it.use(0), it.use(1)
        await first.indexed.wait()
        await second.indexed.wait()
        assert it.opened == 1 and first.repository is second.repository
        it.layers.leave(first.name)
        await trio.sleep(3 * LINGER)
        assert not it.registry.closed and it.holds(1) and not it.holds(0)
        it.layers.leave(second.name)
        await trio.sleep(3 * LINGER)
        assert it.registry.closed
        await it.use(0).indexed.wait()
        assert it.opened == 2 and not it.registry.closed


async def test_a_repository_that_is_ending_is_not_used_again(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Its fetcher brings nothing any more: who comes while its connections are being closed gets others."""
    async with living(store, image) as it:
        old = it.registry
        old.may_close = trio.Event()
        live = it.use()
        await live.indexed.wait()
        it.layers.leave(live.name)
        await trio.sleep(3 * LINGER)
        assert not old.closed
        await it.use().indexed.wait()
        assert it.opened == 2 and it.registry is not old
        old.may_close.set()
        await wait_all_tasks_blocked()
        assert old.closed and not it.registry.closed and it.holds()


async def test_a_toc_that_was_lost_is_fetched_anew(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """However long the registry is away: the reason is logged once and told, readers wait, and what it takes is there when it is back."""
    expect_log("what is missing of layer sha256:.* cannot be had: the registry is away")
    async with trio.open_nursery() as nursery:
        it = Setting(store, image, nursery)
        it.registry.away = True
        live = it.use()
        await trio.sleep(300)
        assert live.trouble == "the registry is away" and not live.indexed.is_set() and not it.catalog.is_complete
        assert 5 < len(it.registry.ranges) < 15, "ever slower"
        it.registry.away = False
        await live.indexed.wait()
        assert not live.trouble and it.catalog.is_complete and it.holds()
        nursery.cancel_scope.cancel()


async def test_a_pull_brings_all(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Without a container, too; the layer lives until then. A restart asks for nothing that had come and made room since."""
    async with living(store, image) as it:
        live = it.pull()
        await live.complete.wait()
        assert not it.missing() and it.missing(1)
        await trio.sleep(3 * LINGER)
        assert not it.layers.live and it.registry.closed
    store.index.change(lambda db: db.execute("DELETE FROM chunk") and None)
    async with living(store, image) as it:
        for lazy in image.lazy:
            it.layers.add(lazy)
        await it.layers.resume(image.lazy)
        await trio.sleep(3 * LINGER)
        assert not it.layers.live and it.missing(0) and not it.missing(1)
        first = image.layer(1).pieces[0].chunk.member
        assert it.registry.ranges == [(first, image.layer(1).pieces[-1].chunk.member_end)]
        await it.pull(0).complete.wait()
        assert not it.missing(0), "a new pull brings it"


async def test_a_restart_asks_only_for_what_is_still_wanted(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """What was removed before its turn came is not fetched."""
    async with living(store, image) as it:
        it.layers.add(image.lazy[1])
        await it.layers.resume(image.lazy)
        assert it.missing(0) and not it.missing(1)


async def test_a_pull_waits_for_its_registry(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """While it is away the pull goes on trying, and says why it stands still."""
    expect_log("stands still: the registry is away")
    async with living(store, image) as it:
        it.registry.away = True
        live = it.pull()
        await trio.sleep(1000)
        assert not live.complete.is_set() and live.uses.count == 1
        it.registry.away = False
        await live.complete.wait()
        assert not it.missing() and not live.repository.trouble


async def test_pulls_of_one_repository_begin_with_their_prefixes(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each layer's author wants first comes before the rest of any; a pull that comes meanwhile is taken in."""
    ends = {lazy.digest: image.layer(number).pieces[0].chunk.member_end for number, lazy in enumerate(image.lazy)}
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", property(lambda layer: ends[layer.digest]))
    async with living(store, image) as it:
        it.registry.gate = trio.Event()
        first = it.pull(0)
        await wait_all_tasks_blocked(0.1)
        second = it.pull(1)
        await second.indexed.wait()
        await wait_all_tasks_blocked(0.1)
        it.registry.ranges.clear()
        it.registry.gate.set()
        await first.complete.wait()
        await second.complete.wait()
        assert not it.missing(0) and not it.missing(1)
        rest = (image.layer(0).pieces[1].chunk.member, image.layer(0).pieces[1].chunk.member_end)
        assert it.registry.ranges[-1] == rest, "all that is not in a prefix"


async def test_the_rest_of_a_pull_waits_until_all_is_quiet(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prefix does not: a container will wait for it."""
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", image.layer(0).pieces[0].chunk.member_end)
    async with living(store, image) as it:
        it.layers.lull.end()
        it.pull()
        await trio.sleep(0.9)
        assert it.missing() == 1
        it.layers.lull.end()
        await trio.sleep(0.9)
        assert it.missing() == 1
        await trio.sleep(0.2)
        assert not it.missing()


async def test_without_the_background_a_pull_ends_with_its_prefix(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says that it is complete: a lazyfsd with another configuration goes on."""
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", image.layer(0).pieces[0].chunk.member_end)
    async with living(store, image, background=False) as it:
        await it.pull().complete.wait()
        await trio.sleep(3 * LINGER)
        assert it.missing() == 1 and not it.layers.live
    async with living(store, image) as it:
        it.layers.add(image.lazy[0])
        await it.layers.resume(image.lazy)
        assert not it.missing()


async def test_a_pull_is_stopped(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """When no snapshot of the layer is left, nothing more of it is asked for, and it ends; nobody says that it is complete."""
    async with living(store, image) as it:
        it.registry.gate = trio.Event()
        live = it.pull()
        await live.indexed.wait()
        await wait_all_tasks_blocked(0.1)
        assert len(it.registry.ranges) == 1
        it.stop()
        it.registry.gate.set()
        await trio.sleep(3 * LINGER)
        assert not it.layers.live and it.missing() == 2 and len(it.registry.ranges) == 1


async def test_a_pull_goes_on_for_the_last_of_its_snapshots(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Of several containerds, or on several parents: the TOC stays until then, too."""
    async with living(store, image) as it:
        it.registry.gate = trio.Event()
        live = it.pull()
        assert it.pull() is live
        it.stop()
        await wait_all_tasks_blocked(0.1)
        assert it.layers.documents() == {image.lazy[0].toc_digest}
        it.registry.gate.set()
        await live.complete.wait()
        assert not it.missing()
        it.stop()
        assert it.layers.documents() == set()


async def test_a_pull_is_stopped_before_it_began(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """A snapshot may go before its layer is indexed."""
    async with living(store, image) as it:
        live = it.pull()
        it.stop()
        await live.indexed.wait()
        await trio.sleep(3 * LINGER)
        assert not it.layers.live and not it.registry.ranges and it.missing() == 2


async def test_a_pull_is_stopped_whose_toc_was_lost(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """Nobody asks a registry that is away for a layer of which there is no snapshot any more."""
    expect_log("cannot be had: the registry is away")
    async with trio.open_nursery() as nursery:
        it = Setting(store, image, nursery)
        it.registry.away = True
        it.pull()
        await trio.sleep(100)
        it.stop()
        await trio.sleep(2 * LINGER)
        assert not it.layers.live and it.catalog.is_complete
        await trio.sleep(LINGER)
        assert it.registry.closed
        nursery.cancel_scope.cancel()


async def test_a_stopped_pull_is_begun_again(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """An image that is removed and pulled again a moment later comes whole, however often that happens, and however slowly."""
    async with living(store, image) as it:
        it.registry.gate = trio.Event()
        live = it.pull()
        await live.indexed.wait()
        for _ in range(3):
            it.stop()
            assert it.pull() is live
        await trio.sleep(10 * LINGER)
        assert it.layers.live == {live.name: live}
        it.registry.gate.set()
        await trio.sleep(2 * LINGER)
        assert not it.missing() and not it.layers.live


async def test_a_pull_that_is_nearly_done_is_not_lost(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one comes while it is noted that this one is complete: both are, and end."""
    run_sync = trio.to_thread.run_sync

    async def interrupted(work: Callable[..., object], *arguments: object, **more: object) -> object:
        if work == it.layers._note_complete and len(it.layers.live) == 1:
            it.pull(1)
            await trio.sleep(1)
        return await run_sync(work, *arguments, **more)  # type: ignore[arg-type]

    async with living(store, image) as it:
        monkeypatch.setattr("trio.to_thread.run_sync", interrupted)
        it.pull(0)
        await trio.sleep(10 * LINGER)
        assert not it.missing(0) and not it.missing(1)
        assert not it.layers.live


async def test_what_is_broken_at_the_source_is_given_up(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """The pull ends, the layer with it, and it is not called complete: after a restart it is looked at again."""
    expect_log("stands still")
    async with living(store, image) as it:
        broken = bytearray(image.blobs[0])
        broken[image.layer(0).pieces[0].chunk.member + 30] ^= 1
        it.registry.blobs[image.lazy[0].digest] = bytes(broken)
        live = it.pull()
        await live.complete.wait()
        assert live.repository.trouble and it.missing() == 1
        await trio.sleep(3 * LINGER)
        assert not it.layers.live
    async with living(store, image) as it:
        await it.pull().complete.wait()
        assert not it.missing()
