"""Live layers, sources and pulls in any order of use, failure, cancellation and end, beside a model of their users. In virtual
time.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.fetch.background import Background
from lazyfs.gate.catalog import LayerObjects
from lazyfs.gate.inode import inode_of
from lazyfs.image.layer import Layer
from lazyfs.live import layer as live_layer
from lazyfs.live.image import LiveImage
from lazyfs.live.layer import IndexedLayer, LiveLayer, Pull, index_layer
from lazyfs.live.lifecycle import State
from lazyfs.live.uses import LINGER
from lazyfs.store.store import Store
from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.live.living import Living

T = TypeVar("T")
LAYERS = st.integers(0, 1)
IMAGES = st.sampled_from(["one", "two"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), LAYERS),
        st.tuples(st.just("leave"), LAYERS),
        st.tuples(st.just("mount"), IMAGES),
        st.tuples(st.just("mount without background"), IMAGES),
        st.tuples(st.just("unmount"), IMAGES),
        st.tuples(st.just("give up"), IMAGES),
        st.tuples(st.just("pull"), LAYERS),
        st.tuples(st.just("stop"), LAYERS),
        st.tuples(st.just("wait"), LAYERS),
        st.tuples(st.just("cancel"), st.none()),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 2.0, LINGER - 1, LINGER + 1, 200.0])),
        st.tuples(st.just("silence"), st.booleans()),
        st.tuples(st.just("slow to close"), st.booleans()),
        st.tuples(st.just("fails"), st.sampled_from([OSError, MemoryError, ZeroDivisionError])),
        st.tuples(st.just("fetcher fails"), st.integers(0, 3)),
        st.tuples(st.just("TOC is lost"), LAYERS),
    ),
    max_size=25,
)


class Surprises:
    """Makes the tasks of live/ fail, as often as a test says."""

    def __init__(self) -> None:
        self.coming: list[type[Exception]] = []

    def strike(self) -> None:
        if self.coming:
            raise self.coming.pop()("surprise")

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        run = Background._run

        async def run_sync(work: Callable[..., T], *arguments: object, **_: object) -> T:
            await trio.lowlevel.checkpoint()
            return work(*arguments)

        def index(layer: Layer, known: LayerObjects | None = None) -> IndexedLayer:
            self.strike()
            return index_layer(layer, known)

        async def background(setting: Background) -> None:
            self.strike()
            await run(setting)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trio.to_thread.run_sync", run_sync)
            patch.setattr(live_layer, "index_layer", index)
            patch.setattr(Background, "_run", background)
            yield


class Waiting:
    """A caller that waits for something live, and may be cancelled."""

    def __init__(self, nursery: trio.Nursery, what: Callable[[], Awaitable[object]]) -> None:
        self.scope = trio.CancelScope()
        self.is_over = False
        self._what = what
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            await self._what()
        self.is_over = True


class Model:
    """The users: what each was given, and must have for as long as it uses it."""

    def __init__(self, setting: Living, surprises: Surprises, nursery: trio.Nursery, image: ScriptedImage) -> None:
        self.setting = setting
        self.surprises = surprises
        self.nursery = nursery
        self.image = image
        self.used: list[tuple[int, LiveLayer]] = []
        self.mounted: list[tuple[str, LiveImage]] = []
        self.pulls: dict[int, tuple[LiveLayer, Pull]] = {}
        self.waiting: list[Waiting] = []
        self.silent = self.slow_to_close = False

    async def step(self, what: str, argument: object) -> None:
        setting = self.setting
        match what, argument:
            case "use", int(number):
                self.used.append((number, setting.use(number)))
            case "leave", int(number):
                for use in [use for use in self.used if use[0] == number][:1]:
                    self.used.remove(use)
                    use[1].uses.change(-1)
            case (("mount" | "mount without background"), str(name)):
                self.mounted.append((name, setting.mount(name, 0, 1, background=what == "mount")))
            case (("unmount" | "give up"), str(name)):
                for mount in [mount for mount in self.mounted if mount[0] == name][:1]:
                    self.mounted.remove(mount)
                    mount[1].leave()
                    if what == "give up":
                        mount[1].give_up()
            case "pull", int(number):
                live = setting.use(number)
                self.pulls[number] = live, setting.pulls.begin(live)
                live.uses.change(-1)
            case "stop", int(number):
                if number in self.pulls:
                    setting.pulls.stop(self.pulls.pop(number)[0])
            case "wait", int(number):
                live = setting.use(number)
                self.used.append((number, live))
                self.waiting.append(Waiting(self.nursery, live.known))
                if number in self.pulls:
                    self.waiting.append(Waiting(self.nursery, lambda: self.pulls[number][1].lifecycle.wait_for(State.ENDED)))
                for _, mounted in self.mounted:
                    self.waiting.append(Waiting(self.nursery, mounted.known))
            case "cancel", _:
                for waiting in self.waiting:
                    waiting.scope.cancel()
            case "pass", float(seconds):
                await trio.sleep(seconds)
            case "silence", bool(silent):
                self.silent = silent
            case "slow to close", bool(slow):
                self.slow_to_close = slow
            case "fails", type() as error:
                self.surprises.coming.append(error)
            case "fetcher fails", int(number):
                alive = [live.source for live in setting.layers.live.values() if live.source.lifecycle.is_in(State.READY)]
                for source in alive[number : number + 1]:
                    assert source.fetcher is not None
                    source.fetcher._tasks._nursery.start_soon(_fail)
            case "TOC is lost", int(number):
                setting.store.documents.drop(self.image.lazy[number].toc_digest)
        self.tell_sources()
        await wait_all_tasks_blocked()
        self.check()

    def tell_sources(self) -> None:
        for source in self.setting.opened:
            for event, is_closed in (("gate", self.silent), ("may_close", self.slow_to_close)):
                if is_closed and getattr(source, event).is_set():
                    setattr(source, event, trio.Event())
                elif not is_closed:
                    getattr(source, event).set()

    def check(self) -> None:
        setting = self.setting
        used = Counter(live for _, live in self.used)
        for image in setting.images.live.values():
            used.update(image.live_layers)
        used.update(live for live in setting.layers.live.values() if live.pull is not None)
        for live in used:
            assert setting.layers.live.get(live.name) is live, "what is used can be found"
        for live in setting.layers.live.values():
            assert not live.lifecycle.is_in(State.ENDED) and not live.source.lifecycle.is_in(State.ENDED, State.CLOSED)
            assert live.uses.count >= used[live]
            if live.is_known and live.source.lifecycle.is_in(State.READY):
                supplies = setting.catalog.find(self.inode(live))
                assert live.source.fetcher in [supply.fetcher for supply in supplies], "the gate finds what fetches it"
                assert not any(supply.fetcher._closed for supply in supplies if supply.fetcher is live.source.fetcher)
        for name, mounted in self.mounted:
            assert mounted.image.name in setting.images.live and setting.images.live[mounted.image.name] is mounted, name
        unknown = [live for live in setting.layers.live.values() if not live.is_known]
        assert setting.catalog.is_complete == (not unknown), "what is not known yet is not taken for what is not there"
        assert setting.catalog._images.keys() <= setting.layers.live.keys(), "nor does what has ended stay"
        self.waiting = [waiting for waiting in self.waiting if not waiting.is_over]

    def inode(self, live: LiveLayer) -> int:
        assert live.kept is not None
        return inode_of(live.kept.objects.layer.pieces[0].content.name)

    async def end(self) -> None:
        """All users leave."""
        self.surprises.coming.clear()
        await self.step("silence", False)
        await self.step("slow to close", False)
        for _, live in self.used:
            live.uses.change(-1)
        self.used = []
        for _, mounted in self.mounted:
            mounted.leave()
        self.mounted = []
        await self.step("pass", 1000.0)
        assert not self.waiting, "whoever waits is woken"
        assert not self.setting.layers.live and not self.setting.images.live and not self.setting.sources.all_shared()
        assert all(source.closed for source in self.setting.opened)
        assert not self.setting.catalog._layers and not self.setting.catalog._images and self.setting.catalog.is_complete
        assert not self.setting.sources._store_flights._flights and not self.setting.pulls._queues


async def _fail() -> None:
    raise ZeroDivisionError


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """What is logged depends on the steps."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_users_have_what_they_use_and_nothing_stays(quiet: None, steps: list[tuple[str, object]]) -> None:
    """In any order, with any failures: users have their layers, waiters are woken, and without users everything ends."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store") as store:
        image = ScriptedImage(Path(folder) / "image", {"a": b"first" * 1000, "b": b"second" * 300}, {"c": b"third" * 500})
        surprises = Surprises()

        async def play() -> None:
            with trio.fail_after(100_000):
                async with trio.open_nursery() as nursery:
                    model = Model(Living(store, image, nursery), surprises, nursery, image)
                    for step in steps:
                        await model.step(*step)
                    await model.end()
                    nursery.cancel_scope.cancel()

        with surprises.everywhere():
            trio.run(play, clock=MockClock(autojump_threshold=0))
