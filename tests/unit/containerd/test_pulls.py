"""Pulls of lazy layers: everything, in order, as long as there is a snapshot; in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import Unreachable
from lazyfs.format.digest import Digest
from lazyfs.image.layer import Layer
from lazyfs.live.layer import LiveLayer
from lazyfs.live.pulls import Pulls
from lazyfs.snapshots.snapshot import LazyLayer
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.containerd.living import LINGER, Setting, ended, living
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.fetch.scripted import until


async def test_a_pull_fetches_everything(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Without a container, too; the layer lives until then. A restart asks for nothing that had come and evicted since."""
    async with living(store, image) as setting:
        live = setting.pull()
        await ended(live)
        assert not setting.missing() and setting.missing(1)
        await trio.sleep(3 * LINGER)
        assert not setting.layers.live and setting.registry.closed
    store.index.change(lambda db: db.execute("DELETE FROM chunk") and None)
    async with living(store, image) as setting:
        for lazy in image.lazy:
            setting.layers.add(lazy)
        await setting.layers.resume(image.lazy)
        await trio.sleep(3 * LINGER)
        assert not setting.layers.live and setting.missing(0) and not setting.missing(1)
        first = image.layer(1).pieces[0].chunk.member
        assert setting.registry.ranges == [(first, image.layer(1).pieces[-1].chunk.member_end)]
        await ended(setting.pull(0))
        assert not setting.missing(0), "a new pull brings it"


async def test_a_restart_asks_only_for_what_is_still_wanted(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """What was removed before its turn came is not fetched."""
    async with living(store, image) as setting:
        setting.layers.add(image.lazy[1])
        await setting.layers.resume(image.lazy)
        assert setting.missing(0) and not setting.missing(1)


async def test_a_surprise_in_one_layer_leaves_the_others(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart, the pull of the first layer fails in an unexpected way: that of the second is resumed."""
    async with living(store, image) as setting:
        for lazy in image.lazy:
            setting.layers.add(lazy)
        pull = setting.layers.pull

        def surprised(lazy: LazyLayer) -> LiveLayer:
            if lazy is image.lazy[0]:
                raise MemoryError("surprise")
            return pull(lazy)

        monkeypatch.setattr(setting.layers, "pull", surprised)
        expect_log("pull of an earlier process of sha256:.* has failed: MemoryError")
        await setting.layers.resume(image.lazy)
        assert setting.missing(0) and not setting.missing(1)


async def test_a_pull_waits_for_its_registry(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """While it is away the pull goes on trying, and says why it stands still."""
    expect_log("is stalled: the registry is away")
    async with living(store, image) as setting:
        setting.registry.away = True
        live = setting.pull()
        await trio.sleep(1000)
        assert live.pull and live.uses.count == 1
        setting.registry.away = False
        await ended(live)
        assert not setting.missing() and not live.source.trouble


async def test_pulls_of_one_repository_begin_with_their_prefixes(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each layer's author wants first comes before the rest of any; a pull that comes meanwhile is taken in."""
    ends = {lazy.digest: image.layer(number).pieces[0].chunk.member_end for number, lazy in enumerate(image.lazy)}
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", property(lambda layer: ends[layer.digest]))
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        first = setting.pull(0)
        await wait_all_tasks_blocked(0.1)
        second = setting.pull(1)
        await second.known()
        await wait_all_tasks_blocked(0.1)
        setting.registry.ranges.clear()
        setting.registry.gate.set()
        await ended(first)
        await ended(second)
        assert not setting.missing(0) and not setting.missing(1)
        rest = (image.layer(0).pieces[1].chunk.member, image.layer(0).pieces[1].chunk.member_end)
        assert setting.registry.ranges[-1] == rest, "all that is not in a prefix"


async def test_the_rest_of_a_pull_waits_until_all_is_quiet(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prefix does not: a container will wait for it."""
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", image.layer(0).pieces[0].chunk.member_end)
    async with living(store, image) as setting:
        setting.layers.quiet_period.note_request()
        setting.pull()
        await trio.sleep(0.9)
        assert setting.missing() == 1
        setting.layers.quiet_period.note_request()
        await trio.sleep(0.9)
        assert setting.missing() == 1
        await trio.sleep(0.2)
        assert not setting.missing()


async def test_without_the_background_a_pull_ends_with_its_prefix(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not noted as complete: a lazyfsd with another configuration continues."""
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", image.layer(0).pieces[0].chunk.member_end)
    async with living(store, image, background=False) as setting:
        await ended(setting.pull())
        await trio.sleep(3 * LINGER)
        assert setting.missing() == 1 and not setting.layers.live
    async with living(store, image) as setting:
        setting.layers.add(image.lazy[0])
        await setting.layers.resume(image.lazy)
        assert not setting.missing()


async def test_a_pull_is_stopped(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """When the last snapshot of the layer is removed, its pull stops, and it is not noted as complete."""
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        live = setting.pull()
        await live.known()
        await wait_all_tasks_blocked(0.1)
        assert len(setting.registry.ranges) == 1
        setting.stop()
        setting.registry.gate.set()
        await trio.sleep(3 * LINGER)
        assert not setting.layers.live and setting.missing() == 2 and len(setting.registry.ranges) == 1


async def test_a_pull_goes_on_for_the_last_of_its_snapshots(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """Of several containerds, or on several parents: the TOC stays until then, too."""
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        live = setting.pull()
        assert setting.pull() is live
        setting.stop()
        await wait_all_tasks_blocked(0.1)
        assert setting.layers.documents() == {image.lazy[0].toc_digest}
        setting.registry.gate.set()
        await ended(live)
        assert not setting.missing()
        setting.stop()
        assert setting.layers.documents() == set()


async def test_a_pull_is_stopped_before_it_began(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """A snapshot may go before its layer is indexed."""
    async with living(store, image) as setting:
        live = setting.pull()
        setting.stop()
        await live.known()
        await trio.sleep(3 * LINGER)
        assert not setting.layers.live and not setting.registry.ranges and setting.missing() == 2


async def test_a_pull_is_stopped_whose_toc_was_lost(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch
) -> None:
    """A layer without snapshots is not requested again from a registry that is away."""
    expect_log("cannot fetch the TOC of layer .*: the registry is away")
    async with trio.open_nursery() as nursery:
        setting = Setting(store, image, nursery)
        setting.registry.away = True
        setting.pull()
        await trio.sleep(100)
        setting.stop()
        await trio.sleep(2 * LINGER)
        assert not setting.layers.live and setting.catalog.is_complete
        await trio.sleep(LINGER)
        assert setting.registry.closed
        nursery.cancel_scope.cancel()


async def test_a_stopped_pull_is_begun_again(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """An image that is removed and pulled again a moment later comes whole, however often that happens, and however slowly."""
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        live = setting.pull()
        await live.known()
        for _ in range(3):
            setting.stop()
            assert setting.pull() is live
        await trio.sleep(10 * LINGER)
        assert setting.layers.live == {live.name: live}
        setting.registry.gate.set()
        await trio.sleep(2 * LINGER)
        assert not setting.missing() and not setting.layers.live


@pytest.mark.parametrize("moment", ["_note_complete", "trim_heap"])
async def test_a_pull_that_comes_at_the_end_of_another_is_not_lost(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """While it is noted that the other one is complete, or memory is given back: both come whole, and end."""
    run_sync, asked = trio.to_thread.run_sync, list[LiveLayer]()

    async def interrupted(work: Callable[..., object], *arguments: object, **more: object) -> object:
        if getattr(work, "__name__", "") == moment and not asked:
            asked.append(setting.pull(1))
            await trio.sleep(1)
        return await run_sync(work, *arguments, **more)  # type: ignore[arg-type]

    async with living(store, image) as setting:
        monkeypatch.setattr("trio.to_thread.run_sync", interrupted)
        setting.pull(0)
        await trio.sleep(10 * LINGER)
        assert not setting.missing(0) and not setting.missing(1)
        assert not setting.layers.live


async def test_a_failure_ends_one_pull_and_not_those_behind_it(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """Who waits for it is woken, it is looked at again after a restart, and the next one has its turn."""
    expect_log("pulls of a source of .* has failed and is tried again .*ZeroDivisionError")
    note, surprises = Pulls._note_complete, [ZeroDivisionError("surprise")]

    def fail_first(pulls: Pulls, layer: Layer) -> None:
        if surprises:
            raise surprises.pop()
        note(pulls, layer)

    monkeypatch.setattr(Pulls, "_note_complete", fail_first)
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        both = [setting.pull(0), setting.pull(1)]
        await trio.sleep(2)
        setting.registry.gate.set()
        for live in both:
            await ended(live)
        assert not setting.missing(0) and not setting.missing(1)
        assert sorted([await setting.layers._pulls.was_complete(live.layer) for live in both]) == [False, True]
        await trio.sleep(10 * LINGER)
        assert not setting.layers.live


async def test_a_pull_that_comes_or_goes_leaves_the_others_alone(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way for one layer is neither cut off nor asked for again."""
    monkeypatch.setattr("lazyfs.fetch.background.RUN_BYTES", 1)  # a range for each of the two files
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        first = setting.pull(0)
        await first.known()
        await until(lambda: setting.registry.ranges)
        for _ in range(3):
            second = setting.pull(1)
            await second.known()
            await wait_all_tasks_blocked(0.1)
            setting.stop(1)
            await wait_all_tasks_blocked(0.1)
        second = setting.pull(1)
        setting.registry.gate.set()
        await ended(first)
        await ended(second)
        assert not setting.missing(0) and not setting.missing(1)
        pieces = [piece.chunk for number in range(2) for piece in image.layer(number).pieces]
        assert setting.registry.ranges == [(chunk.member, chunk.member_end) for chunk in pieces]


async def test_a_pull_that_is_stopped_makes_way_for_the_next(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """It is left at once, though the registry never answers for it; who waits for it waits no more."""
    async with living(store, image) as setting:
        setting.registry.gate = trio.Event()
        first = setting.pull(0)
        await first.known()
        await until(lambda: setting.registry.ranges)
        second = setting.pull(1)
        await second.known()
        setting.stop(0)
        await ended(first)
        await until(lambda: len(setting.registry.ranges) == 2)
        setting.registry.gate.set()
        await ended(second)
        assert not setting.missing(1) and setting.missing(0)


async def test_a_pull_that_stands_still_lets_the_next_one_go(
    store: Store, image: ScriptedImage, jumping: MockClock, expect_log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that the registry has lost does not keep the others from coming; when it is there again, it comes as well."""
    expect_log("is stalled: the blob is away")
    async with living(store, image) as setting:
        right, is_away = setting.registry.open_range, True

        def lost(digest: Digest, *rest: Any, **more: Any) -> Any:
            if is_away and digest == image.lazy[0].digest:
                raise Unreachable("the blob is away")
            return right(digest, *rest, **more)

        monkeypatch.setattr(setting.registry, "open_range", lost)
        first = setting.pull(0)
        await trio.sleep(100)
        second = setting.pull(1)
        with trio.fail_after(300):
            await ended(second)
        assert setting.missing(0) and not setting.missing(1) and first.pull
        is_away = False
        with trio.fail_after(300):
            await ended(first)
        assert not setting.missing(0)
