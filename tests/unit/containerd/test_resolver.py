"""Layers resolved from what containerd's labels say of them, in virtual time, against a registry that a test holds in its hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.containerd.resolver import LayerResolver, Resolved
from lazyfs.errors import BadAnswer, DigestMismatch, InvalidInput, NotFound, StoreUnusable, Unreachable, UsageError
from lazyfs.fetch.background import measure_missing
from lazyfs.format.dialect import TocClaim
from lazyfs.format.digest import digest_of
from lazyfs.format.estargz import ESTARGZ
from lazyfs.gate.catalog import Catalog
from lazyfs.native.metadata import LayerMetadata
from lazyfs.snapshots.labels import Claim, ListedLayer
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor
from tests.conftest import LogWatch
from tests.unit.containerd.living import lazy_layers
from tests.unit.containerd.scripted import HOST, REPOSITORY, ScriptedImage, ScriptedRegistry

MEMORY = 61.0
ELSEWHERE = digest_of(b"no such thing")


class Setting:
    """What resolves, of a daemon of which nothing else is there."""

    def __init__(self, store: Store, registry: ScriptedRegistry, nursery: trio.Nursery) -> None:
        self.registry = registry
        tasks = Supervisor(nursery)
        self.layers = lazy_layers(store, Catalog(), tasks, self._open)
        self.resolver = LayerResolver(store, self.layers, tasks)

    def _open(self, repository: str) -> ScriptedRegistry:
        assert repository == REPOSITORY
        self.registry.closed = False
        return self.registry

    async def resolve_all(self, claims: Sequence[Claim]) -> list[Resolved]:
        """At once."""
        found: dict[int, Resolved] = {}

        async def one(number: int) -> None:
            found[number] = await self.resolver.resolve(claims[number])

        async with trio.open_nursery() as nursery:
            for number in range(len(claims)):
                nursery.start_soon(one, number)
        return [found[number] for number in range(len(claims))]


@asynccontextmanager
async def resolver(store: Store, registry: ScriptedRegistry) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        yield Setting(store, registry, nursery)
        nursery.cancel_scope.cancel()


class Grown:
    """In place of what builds the EROFS images of a stack ahead of time: the layers that were begun, in order."""

    def __init__(self) -> None:
        self.begun: list[LayerMetadata] = []
        self.failing = False
        self.open = 0

    def __call__(self, _store: Path) -> Grown:
        self.open += 1
        return self

    def expect(self, keys: Sequence[str]) -> None:
        """Nothing is started."""

    def add(self, layer: LayerMetadata) -> Future[Path]:
        self.begun.append(layer)
        image = Future[Path]()
        if self.failing:
            image.set_exception(StoreUnusable("the disk has failed"))
        else:
            image.set_result(Path(layer.toc_digest))
        return image

    def close(self) -> None:
        self.open -= 1


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> Grown:
    grown = Grown()
    monkeypatch.setattr("lazyfs.containerd.resolver.GrowingStack", grown)
    return grown


async def test_an_image_is_resolved_once(store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown) -> None:
    """Many claims at once, one manifest and one range a layer; the EROFS images of the stack are begun before they are asked for."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        found = await setting.resolve_all([image.claim(number % 2) for number in range(10)])
        assert [resolved.lazy for resolved in found] == [image.lazy[number % 2] for number in range(10)]
        assert len((await found[0].layer_index.indexed()).objects) == 2
        await wait_all_tasks_blocked()
        assert registry.asked == ["v1"] and len(registry.ranges) == 2 and registry.connected
        assert [layer[:2] for layer in grown.begun] == [
            (lazy.toc_digest, lazy.toc_offset) for lazy in image.lazy
        ] and not grown.open


async def test_layers_that_nobody_asked_for_are_resolved_ahead(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown
) -> None:
    """When containerd comes to the next one, the registry may be away. The image is remembered a while: a tag is asked for again."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        await setting.resolver.resolve(image.claim(0))
        await wait_all_tasks_blocked()
        registry.away = True
        assert (await setting.resolver.resolve(image.claim(1))).lazy == image.lazy[1]
        assert (await setting.resolver.resolve(image.claim(1))).lazy == image.lazy[1], "on another parent"
        await trio.sleep(MEMORY)
        assert registry.asked == ["v1"] and len(registry.ranges) == 2
        with pytest.raises(Unreachable, match="the registry is away"):
            await setting.resolver.resolve(image.claim(0))
        registry.away = False
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        assert registry.asked == ["v1"] * 3 and len(registry.ranges) == 2, "TOCs are in the store"


async def test_what_a_digest_names_needs_no_registry(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown
) -> None:
    """A second time, in any process: its manifest and TOCs are in the store."""
    claims = [image.claim(0, manifest_digest=image.digest), image.claim(1, reference=f"{HOST}/image@{image.digest}")]
    for away in (False, True):
        registry = image.registry()
        registry.away = away
        async with resolver(store, registry) as setting:
            assert [found.lazy for found in await setting.resolve_all(claims)] == image.lazy
        assert registry.asked == ([] if away else [image.digest])
        assert len(registry.ranges) == (0 if away else 2)


async def test_a_manifest_that_does_not_name_the_layer(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown
) -> None:
    """The tag means another image by now: what is asked for is not taken from it, and nothing is fetched for it."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        with pytest.raises(BadAnswer, match=f"does not name layer {ELSEWHERE}"):
            await setting.resolver.resolve(image.claim(0, digest=ELSEWHERE))
        await wait_all_tasks_blocked()
        assert len(registry.ranges) == 2, "for the layers that it names"


async def test_a_toc_that_the_label_does_not_name(store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown) -> None:
    """A fetched manifest with another TOC digest than containerd's own is not believed. Another claim is resolved on its own."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        with pytest.raises(DigestMismatch, match="TOC"):
            await setting.resolver.resolve(image.claim(0, toc=TocClaim(ESTARGZ, ELSEWHERE)))
        assert store.document(ELSEWHERE) is None
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        with pytest.raises(DigestMismatch):
            await setting.resolver.resolve(image.claim(0, toc=TocClaim(ESTARGZ, ELSEWHERE)))


async def test_a_registry_that_is_away(store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown) -> None:
    """Each claim fails, for manifests and for TOCs, and the next one is tried again; a missing document is reported as such."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        registry.away = True
        for count in (1, 2):
            with pytest.raises(Unreachable, match="the registry is away"):
                await setting.resolver.resolve(image.claim(0))
            assert registry.asked == ["v1"] * count
        registry.away = False
        registry.fails = 2
        with pytest.raises(Unreachable, match="the source has gone away"):
            await setting.resolver.resolve(image.claim(0))
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        with pytest.raises(NotFound):
            await setting.resolver.resolve(image.claim(0, reference=f"{HOST}/image:v2"))
        assert grown.begun == [], "the layer that is missing is the lowest"


async def test_a_registry_that_is_silent(store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown) -> None:
    """Who has no time waits no longer, and what is under way arrives all the same; in the end it is given up in words."""
    registry = image.registry()
    registry.gate = trio.Event()
    async with resolver(store, registry) as setting:
        for _ in range(3):
            with trio.move_on_after(10) as patience:
                await setting.resolver.resolve(image.claim(0))
            assert patience.cancelled_caught
        assert registry.asked == ["v1"]
        registry.gate.set()
        await wait_all_tasks_blocked()
        assert len(registry.ranges) == 2, "nobody waits for it"
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        assert registry.asked == ["v1"] and len(registry.ranges) == 2
        registry.gate = trio.Event()
        start = trio.current_time()
        with pytest.raises(Unreachable, match="did not deliver the manifest of v2 within 60 s"):
            await setting.resolver.resolve(image.claim(0, reference=f"{HOST}/image:v2"))
        assert trio.current_time() - start == 60
        with pytest.raises(Unreachable, match=r"did not deliver the TOC of layer .* within 60 s"):
            await setting.resolver.resolve(image.claim(0, manifest_digest=image.digest, toc=TocClaim(ESTARGZ, ELSEWHERE)))


async def test_a_pull_waits_for_a_silent_registry_once(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown
) -> None:
    """Where one layer has taken too long, the others have no time to come, unless they are here; the same one has time again."""
    registry = image.registry()
    registry.gate = trio.Event()
    async with resolver(store, registry) as setting:
        for _ in range(2):
            start = trio.current_time()
            with trio.move_on_after(10):
                await setting.resolver.resolve(image.claim(0))
            assert trio.current_time() - start == 10
            with pytest.raises(Unreachable, match=f"another layer of {HOST}/image:v1"):
                await setting.resolver.resolve(image.claim(1))
            assert trio.current_time() - start < 11
        registry.gate.set()
        await wait_all_tasks_blocked()
        assert (await setting.resolver.resolve(image.claim(1))).lazy == image.lazy[1], "it has come meanwhile"
        assert registry.asked == ["v1"]


async def test_what_our_own_client_sends_needs_no_manifest(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown
) -> None:
    """It is only where to look: a size that is wrong costs that layer its laziness, and a layer that was left out nothing."""
    labelled = tuple(ListedLayer(lazy.digest, lazy.size, TocClaim(ESTARGZ, lazy.toc_digest)) for lazy in image.lazy)
    registry = image.registry()
    async with resolver(store, registry) as setting:
        for wrong in (0, 1, labelled[0].size - 1):
            with pytest.raises(InvalidInput):
                await setting.resolver.resolve(image.claim(0, size=wrong, layers=()))
        registry.ranges.clear()
        await trio.sleep(MEMORY)
        assert (await setting.resolver.resolve(image.claim(0, size=labelled[0].size, layers=labelled))).lazy == image.lazy[0]
        await wait_all_tasks_blocked()
        assert registry.asked == [] and len(registry.ranges) == 2
        assert (await setting.resolver.resolve(image.claim(1, size=labelled[1].size, layers=()))).lazy == image.lazy[1]
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0], (
            "who tells nothing is not answered from that"
        )
        assert registry.asked == ["v1"]


async def test_a_repository_is_left_when_it_is_not_needed(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown
) -> None:
    """LayerResolver holds no connection for longer than it takes, and a while."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        await setting.resolver.resolve(image.claim(0))
        await trio.sleep(31)
        assert registry.closed
        await trio.sleep(MEMORY)
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        assert not registry.closed


async def test_references_that_are_none(store: Store, image: ScriptedImage, jumping: MockClock) -> None:
    """A label may hold anything; nothing is asked for that."""
    registry = image.registry()
    async with resolver(store, registry) as setting:
        for reference in (f"{HOST}/Image:v1", f"{HOST}/image@sha256:1", f"{HOST}/a//b", "/image"):
            with pytest.raises(UsageError):
                await setting.resolver.resolve(image.claim(0, reference=reference))
        assert not registry.asked


async def test_prefixes_come_ahead(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every layer of an image whose lowest one is asked for; nothing that is not in one."""
    ends = [image.layer(number).pieces[0].chunk.member_end for number in range(2)]
    monkeypatch.setattr(
        "lazyfs.image.layer.Layer.prefetch_end", property(lambda layer: ends[layer.digest == image.lazy[1].digest])
    )
    registry = image.registry()
    async with resolver(store, registry) as setting:
        await setting.resolver.resolve(image.claim(0))
        await wait_all_tasks_blocked()
        assert [measure_missing(store, [image.layer(number)]).chunks for number in range(2)] == [1, 0]
        assert sorted(registry.ranges[2:]) == sorted((0, end) for end in ends)
        await trio.sleep(MEMORY)
        assert registry.closed, "nobody needs it any more"


async def test_a_prefix_ahead_that_does_not_come(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """Is dropped: it was not in use yet."""
    expect_log("is stalled")
    monkeypatch.setattr("lazyfs.image.layer.Layer.prefetch_end", 1)
    registry = image.registry()
    async with resolver(store, registry) as setting:
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        registry.away = True
        await trio.sleep(2 * MEMORY)
        assert registry.closed


@pytest.mark.parametrize("broken", [0, 1])
async def test_what_stands_on_a_layer_that_is_not_lazy(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown, broken: int
) -> None:
    """Is not built ahead of time: what its directories take from below is not known. What lies below is."""
    registry = image.registry()
    registry.blobs[image.lazy[broken].digest] = bytes(image.lazy[broken].size)
    async with resolver(store, registry) as setting:
        with pytest.raises(InvalidInput):
            await setting.resolver.resolve(image.claim(broken))
        assert (await setting.resolver.resolve(image.claim(1 - broken))).lazy == image.lazy[1 - broken]
        await wait_all_tasks_blocked()
        assert [layer.toc_digest for layer in grown.begun] == [lazy.toc_digest for lazy in image.lazy[:broken]]
        assert not grown.open


async def test_images_that_cannot_be_built(
    store: Store, image: ScriptedImage, jumping: MockClock, grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead of time that is not an error; a request for them fails."""
    grown.failing = True

    def refuse(_store: Path, _stack: Sequence[LayerMetadata | Path]) -> tuple[Path, ...]:
        raise StoreUnusable("the disk has failed")

    monkeypatch.setattr("lazyfs.containerd.resolver.ensure_metadata", refuse)
    async with resolver(store, image.registry()) as setting:
        assert (await setting.resolver.resolve(image.claim(0))).lazy == image.lazy[0]
        await wait_all_tasks_blocked()
        with pytest.raises(StoreUnusable, match="the disk has failed"):
            await setting.resolver.build([])


async def test_the_images_of_a_stack(store: Store, image: ScriptedImage) -> None:
    """Are built from what was resolved, and found when they are asked for again."""
    async with resolver(store, image.registry()) as setting:
        stack = [(await setting.resolver.resolve(image.claim(number))).lazy for number in range(2)]
        images = await setting.resolver.build(stack)
        assert len(images) == 2 and all(path.is_file() for path in images)
        assert await setting.resolver.build(stack) == images


async def test_images_and_tocs_that_were_removed(store: Store, image: ScriptedImage, expect_log: LogWatch) -> None:
    """Both are restored, for the missing layers only, if the registry is reachable; otherwise that is the error."""
    expect_log(f"TOC of layer {image.lazy[1].digest} of .* is missing from the store")
    async with resolver(store, image.registry()) as setting:
        stack = [(await setting.resolver.resolve(image.claim(number))).lazy for number in range(2)]
        images = await setting.resolver.build(stack)
        for path in images[0].parent.iterdir():
            path.unlink()
        Path(store.directory.documents, stack[1].toc_digest[7:]).unlink()
        setting.registry.ranges.clear()
        setting.registry.away = True
        with pytest.raises(Unreachable, match="the registry is away"):
            await setting.resolver.build(stack)
        setting.registry.away = False
        assert await setting.resolver.build(stack) == images
        assert all(path.is_file() for path in images)
        assert len(setting.registry.ranges) == 2


async def test_a_toc_that_was_removed_and_does_not_come(
    store: Store, image: ScriptedImage, jumping: MockClock, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """Who asks for the images waits ten seconds, and no longer."""
    expect_log("is missing from the store")

    def refuse(_store: Path, _stack: Sequence[LayerMetadata | Path]) -> tuple[Path, ...]:
        raise StoreUnusable("there is no TOC")

    monkeypatch.setattr("lazyfs.containerd.resolver.ensure_metadata", refuse)
    registry = image.registry()
    registry.gate = trio.Event()
    async with resolver(store, registry) as setting:
        with pytest.raises(Unreachable, match="within 10 s"):
            await setting.resolver.build(image.lazy)
        assert trio.current_time() == pytest.approx(10)
