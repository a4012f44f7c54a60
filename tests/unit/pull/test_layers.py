"""The snapshots of a pull: lazy, unpacked, there already, taken by the garbage collector, and given up, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.api.services.content.v1 import content_pb2
from lazyfs.api.services.diff.v1 import diff_pb2
from lazyfs.api.services.snapshots.v1 import snapshots_pb2
from lazyfs.api.types import descriptor_pb2, mount_pb2
from lazyfs.errors import ContainerdFailed, DigestMismatch
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor, ImageConfig, Manifest
from lazyfs.image.image import Image
from lazyfs.pull.containerd import Containerd
from lazyfs.pull.downloads import Downloads
from lazyfs.pull.labels import UNCOMPRESSED, chain_ids
from lazyfs.pull.layers import Layers
from lazyfs.snapshots.labels import REASON, REMOTE, TARGET
from tests.unit.pull.test_labels import digest, lazy, raw

pytestmark = pytest.mark.usefixtures("autojump_clock")

LAZY, ALSO_LAZY = lazy("first"), lazy("second")
PLAIN = Descriptor(OCI_LAYER_TAR, digest("third"), 1000, {}, None, {})


class ScriptedContainerd(Containerd):
    """Snapshots by key, with their labels, and a diff service; `log` is what was called, with what."""

    def __init__(self) -> None:
        self.namespace, self.lease = "tests", "the lease"
        names = ("Stat", "Prepare", "Commit", "Remove", "Apply", "AddResource", "Info", "Update")
        every = cast(Any, SimpleNamespace(**{name: name for name in names}))
        self.snapshots = self.diff = self.leases = self.content = every
        self.there: dict[str, dict[str, str]] = {}
        self.log: list[tuple[str, str]] = []
        self.requests: dict[str, Any] = {}
        """The last one of each method."""
        self.is_lazy = True
        """Whether the snapshotter makes layers lazy."""
        self.answers: dict[str, list[str | None]] = {}
        """Statuses with which the next calls of a method fail; None for one that does not."""
        self.hanging: set[str] = set()
        """Methods that never answer."""
        self.collected = 0
        """How often the garbage collector takes a snapshot as soon as it is made."""
        self.unpacked: dict[str, str] = {}
        """What blobs unpack to: by the blob's digest."""

    async def call(self, method: Any, request: Any, *, deadline: float = 60) -> Any:
        about = getattr(request, "key", "") or getattr(request, "name", "")
        self.log.append((method, about))
        self.requests[method] = request
        await trio.lowlevel.checkpoint()
        if method in self.hanging:
            await trio.sleep_forever()
        if self.answers.get(method) and (status := self.answers[method].pop(0)):
            raise ContainerdFailed(f"{method} says no", status=status)
        return getattr(self, f"_{method.lower()}")(request)

    def _stat(self, request: Any) -> Any:
        if request.key not in self.there:
            raise ContainerdFailed("not found", status="NOT_FOUND")
        return snapshots_pb2.StatSnapshotResponse(info=snapshots_pb2.Info(name=request.key, labels=self.there[request.key]))

    def _prepare(self, request: Any) -> Any:
        if self.is_lazy and any(key.endswith("toc.digest") for key in request.labels):
            self._make(request.labels[TARGET], {**request.labels, REMOTE: "remote"})
            raise ContainerdFailed("exists", status="ALREADY_EXISTS")
        self.there[request.key] = {REASON: f"{PLAIN.digest} is too large"}
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[mount_pb2.Mount(type="bind", source=request.key)])

    def _commit(self, request: Any) -> Any:
        if request.name in self.there:
            raise ContainerdFailed("exists", status="ALREADY_EXISTS")
        self._make(request.name, {**self.there.pop(request.key), **request.labels})
        return object()

    def _make(self, name: str, labels: dict[str, str]) -> None:
        self.collected -= 1
        if self.collected < 0:
            self.there[name] = labels

    def _remove(self, request: Any) -> Any:
        if self.there.pop(request.key, None) is None:
            raise ContainerdFailed("not found", status="NOT_FOUND")

    def _apply(self, request: Any) -> Any:
        return diff_pb2.ApplyResponse(applied=descriptor_pb2.Descriptor(digest=self.unpacked[request.diff.digest]))

    def _addresource(self, request: Any) -> Any:
        assert request.id == "the lease" and request.resource.type == "snapshots/lazyfs"

    def _info(self, request: Any) -> Any:
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest))

    def _update(self, request: Any) -> Any:
        return content_pb2.UpdateResponse()

    @property
    def called(self) -> list[str]:
        return [method for method, _ in self.log]


class ScriptedDownloads(Downloads):
    """Blobs that come when a test says so."""

    def __init__(self) -> None:
        self.begun: dict[str, trio.Event] = {}
        self.at_once = True

    def begin(self, blob: Descriptor) -> trio.Event:
        event = self.begun.setdefault(blob.digest, trio.Event())
        if self.at_once:
            event.set()
        return event


class Setting:
    """A pull of an image of these layers."""

    def __init__(self, *layers: Descriptor) -> None:
        diff_ids = tuple(digest((layer.digest, "unpacked")) for layer in layers)
        manifest = Manifest("", layers[0], layers, {}, {}, repr(raw(*layers)).encode())
        image = Image("registry.test/image", digest_of(b"manifest"), manifest, ImageConfig(diff_ids, "amd64", "linux", ""))
        self.chain = chain_ids(diff_ids)
        self.containerd = ScriptedContainerd()
        self.containerd.unpacked = {layer.digest: diff_id for layer, diff_id in zip(layers, diff_ids, strict=True)}
        self.downloads = ScriptedDownloads()
        self.layers = Layers(self.containerd, "lazyfs", "registry.test/image:v1", image, self.downloads)

    @property
    def made(self) -> set[str]:
        """The snapshots that are there."""
        return set(self.containerd.there)


async def test_lazy_layers_stay_where_they_are() -> None:
    """One on the other, by one Prepare each, and no blob is fetched."""
    setting = Setting(LAZY, ALSO_LAZY)
    await setting.layers.download_ahead()
    found = [await setting.layers.make(number) for number in range(2)]
    assert [(layer.digest, layer.chain_id, layer.reason) for layer in found] == [
        (LAZY.digest, setting.chain[0], ""),
        (ALSO_LAZY.digest, setting.chain[1], ""),
    ]
    assert setting.containerd.called == ["Stat", "Prepare", "Stat"] * 2 and not setting.downloads.begun
    prepared = setting.containerd.requests["Prepare"]
    assert (
        prepared.parent == setting.chain[0] and prepared.labels[TARGET] == setting.chain[1] and prepared.snapshotter == "lazyfs"
    )
    assert setting.made == set(setting.chain)


async def test_a_layer_that_is_not_lazy_is_unpacked() -> None:
    """When its blob is there, and not before; the blob then has its diff ID, and the layer the reason."""
    setting = Setting(PLAIN)
    setting.downloads.at_once = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setting.layers.make, 0)
        await wait_all_tasks_blocked()
        assert setting.containerd.called == ["Stat", "Prepare"]
        setting.downloads.begun[PLAIN.digest].set()
    assert setting.containerd.called[2:] == ["Apply", "Commit", "Info", "Update", "Stat"]
    applied = setting.containerd.requests["Apply"]
    assert (applied.diff.media_type, applied.diff.size) == (OCI_LAYER_GZIP, 1000)
    assert applied.mounts[0].source == setting.containerd.requests["Prepare"].key
    assert dict(setting.containerd.requests["Update"].info.labels) == {UNCOMPRESSED: digest((PLAIN.digest, "unpacked"))}
    assert setting.made == {setting.chain[0]} and setting.containerd.there[setting.chain[0]][TARGET] == setting.chain[0]


async def test_a_snapshotter_that_cannot_says_why() -> None:
    """In a label of the snapshot; the layer is unpacked like another."""
    setting = Setting(LAZY)
    setting.containerd.is_lazy = False
    layer = await setting.layers.make(0)
    assert layer.reason == f"{PLAIN.digest} is too large"
    assert "Apply" in setting.containerd.called


async def test_only_what_will_be_unpacked_is_fetched_ahead() -> None:
    """Neither what may be lazy, nor what has a snapshot."""
    setting = Setting(LAZY, PLAIN)
    await setting.layers.download_ahead()
    assert set(setting.downloads.begun) == {PLAIN.digest}
    setting = Setting(LAZY, PLAIN)
    setting.containerd.there[setting.chain[1]] = {}
    await setting.layers.download_ahead()
    assert not setting.downloads.begun


async def test_a_snapshot_that_is_there_is_held() -> None:
    """By the lease, or the garbage collector could take it before the image has its name."""
    setting = Setting(PLAIN)
    setting.containerd.there[setting.chain[0]] = {}
    layer = await setting.layers.make(0)
    assert setting.containerd.called == ["Stat", "AddResource", "Stat"] and not setting.downloads.begun
    assert setting.containerd.requests["AddResource"].resource.id == setting.chain[0]
    assert "was not converted" in layer.reason


async def test_what_was_unpacked_by_somebody_else_says_so() -> None:
    """Nothing is known of why."""
    setting = Setting(LAZY)
    setting.containerd.there[setting.chain[0]] = {}
    assert (await setting.layers.make(0)).reason == "was unpacked before"


async def test_a_garbage_collector_that_is_quicker() -> None:
    """The layer is made again; one that never stays is an error."""
    setting = Setting(LAZY)
    setting.containerd.collected = 5
    assert not (await setting.layers.make(0)).reason
    assert setting.containerd.called.count("Prepare") == 6
    setting = Setting(LAZY)
    setting.containerd.collected = 100
    with pytest.raises(ContainerdFailed, match="does not find it"):
        await setting.layers.make(0)
    assert setting.containerd.called.count("Prepare") == 6


async def test_a_snapshotter_that_is_started_again() -> None:
    """Its calls are repeated for five seconds, and not for ever."""
    setting = Setting(LAZY)
    setting.containerd.answers = {"Stat": ["UNAVAILABLE"] * 2, "Prepare": ["UNAVAILABLE"] * 3}
    began = trio.current_time()
    assert not (await setting.layers.make(0)).reason
    assert trio.current_time() - began == pytest.approx(5)
    setting = Setting(LAZY)
    setting.containerd.answers = {"Stat": ["UNAVAILABLE"] * 6}
    with pytest.raises(ContainerdFailed, match="the snapshotter lazyfs fails"):
        await setting.layers.make(0)
    assert setting.containerd.called == ["Stat"] * 6


async def test_another_error_is_one_at_once() -> None:
    """What it means is not known here."""
    setting = Setting(LAZY)
    setting.containerd.answers = {"Prepare": ["INTERNAL"]}
    with pytest.raises(ContainerdFailed, match="Prepare says no"):
        await setting.layers.make(0)
    assert setting.containerd.called == ["Stat", "Prepare", "Remove"]


async def test_a_layer_that_unpacks_to_something_else() -> None:
    """Is not committed, and what was unpacked goes."""
    setting = Setting(PLAIN)
    setting.containerd.unpacked[PLAIN.digest] = digest("something else")
    with pytest.raises(DigestMismatch, match=r"unpacks to .* diff ID"):
        await setting.layers.make(0)
    assert setting.made == set() and "Commit" not in setting.containerd.called


async def test_another_pull_that_was_quicker() -> None:
    """Its snapshot is the layer's, and ours goes."""
    setting = Setting(PLAIN)
    setting.containerd.answers = {"Commit": ["ALREADY_EXISTS"]}
    setting.downloads.at_once = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setting.layers.make, 0)
        await wait_all_tasks_blocked()
        setting.containerd.there[setting.chain[0]] = {}
        setting.downloads.begun[PLAIN.digest].set()
    assert setting.made == {setting.chain[0]}


@pytest.mark.parametrize("method", ["Apply", "Commit", "Update"])
async def test_a_layer_that_cannot_be_unpacked_leaves_nothing(method: str) -> None:
    """Nor does it matter whether what was begun can be removed: it goes with the lease."""
    for removal in (None, "INTERNAL"):
        setting = Setting(PLAIN)
        setting.containerd.answers = {method: ["INTERNAL"], "Remove": [removal]}
        with pytest.raises(ContainerdFailed, match=f"{method} says no"):
            await setting.layers.make(0)
        assert setting.containerd.called[-1] == "Remove"
        if method != "Update":
            assert bool(setting.made) == bool(removal)


@pytest.mark.parametrize("method", ["download", "Prepare", "Apply", "Commit"])
async def test_a_layer_that_is_given_up_leaves_nothing(method: str, autojump_clock: MockClock) -> None:
    """Cancelled wherever it waits: what it has begun is removed, for which containerd has a minute."""
    setting = Setting(PLAIN)
    setting.downloads.at_once = method != "download"
    setting.containerd.hanging.add(method)
    with trio.move_on_after(10):
        await setting.layers.make(0)
    assert setting.containerd.called[-1] == "Remove" and trio.current_time() == pytest.approx(10, abs=1)
    assert setting.made == set() or method == "Prepare"
    setting = Setting(PLAIN)
    setting.containerd.hanging |= {"Apply", "Remove"}
    began = trio.current_time()
    with trio.move_on_after(10):
        await setting.layers.make(0)
    assert trio.current_time() - began == pytest.approx(70)


def _keys(log: Iterable[tuple[str, str]], method: str) -> list[str]:
    return [about for each, about in log if each == method]


async def test_each_try_has_a_key_of_its_own() -> None:
    """As containerd's client names them, by which a snapshotter knows an unpacker."""
    setting = Setting(LAZY)
    setting.containerd.collected = 3
    await setting.layers.make(0)
    keys = _keys(setting.containerd.log, "Prepare")
    assert len(set(keys)) == 4
    assert all(key.startswith("extract-") and key.endswith(f" {setting.chain[0]}") for key in keys)
