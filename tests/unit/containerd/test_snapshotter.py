"""Prepare, Mounts, Commit, Remove and their likes, in every order, without root, FUSE or containerd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.containerd.mounts import MountSpec
from lazyfs.containerd.resolver import DEADLINE
from lazyfs.containerd.snapshotter import Usage, lazy_name
from lazyfs.errors import MountFailed, NotLazy, SnapshotBusy, SnapshotExists, SnapshotNotFound, StoreFull, StoreUnusable
from lazyfs.snapshots.labels import REMOTE, TARGET
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.containerd.snapshotting import Setting, labels_of, lazy_layer, name_of, snapshotting

NAME = lazy_name("chain-0", "")
EXTRACT = "default/1/extract-1 chain-1"
"""As containerd calls what it unpacks into."""


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Of directories, as only root could give them away."""
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.update({str(path): (uid, gid)}))
    return given


@pytest.fixture
def folder(tmp_path: Path, jumping: MockClock, owners: dict[str, tuple[int, int]]) -> Path:
    """Of one containerd, in virtual time."""
    return tmp_path / "k"


async def lazily(setting: Setting, number: int = 0, parent: str = "") -> str:
    """Prepare a layer that can be lazy; its snapshot's name."""
    with pytest.raises(SnapshotExists, match="is lazy"):
        await setting.snapshotter.prepare(f"extract {number}", parent, labels_of(number))
    return lazy_name(f"chain-{number}", parent)


async def container(setting: Setting, key: str = "container", parent: str = NAME) -> tuple[MountSpec, ...]:
    return await setting.snapshotter.prepare(key, parent, {})


async def test_an_ordinary_snapshot(store: Store, folder: Path, owners: dict[str, tuple[int, int]]) -> None:
    """A directory of root's, and a bind mount of it; nothing else is asked for."""
    async with snapshotting(store, folder) as setting:
        (mount,) = await setting.snapshotter.prepare("a", "", {})
        fs = setting.folders.fs(1)
        assert mount == MountSpec("bind", str(fs), ("rw", "rbind"))
        assert fs.stat().st_mode & 0o7777 == 0o755 and owners[str(fs)] == (0, 0)
        assert setting.rows == [("a", "active")] and not setting.roots.done and not setting.resolver.asked


async def test_a_lazy_layer_is_there_at_once(store: Store, folder: Path) -> None:
    """Committed by Prepare, with its labels; its pull begins, and a second Prepare makes no request."""
    async with snapshotting(store, folder) as setting:
        name = await lazily(setting)
        assert setting.rows == [(name, "lazy")] and setting.directories == []
        labels = (await setting.snapshotter.stat(name)).labels
        assert labels[REMOTE] and labels[TARGET] == "chain-0"
        assert setting.layers.expected == setting.layers.pulled == [name_of(lazy_layer(0))]
        await lazily(setting)
        assert setting.resolver.asked == ["chain-0"] and setting.layers.pulled == [name_of(lazy_layer(0))]


async def test_layers_on_layers(store: Store, folder: Path) -> None:
    """Each is tried on what it will stand on, unpacked directories included, from the lowest up."""
    async with snapshotting(store, folder) as setting:
        await setting.snapshotter.prepare(EXTRACT, "", {})
        await setting.snapshotter.commit(EXTRACT, "base", {})
        first = await lazily(setting, 0, "base")
        await lazily(setting, 1, first)
        assert setting.resolver.built[-1] == ["fs", lazy_layer(0).digest[7:15], lazy_layer(1).digest[7:15]]


@pytest.mark.parametrize("at", ["resolve", "build"])
async def test_a_layer_that_cannot_be_lazy_is_unpacked(store: Store, folder: Path, at: str, expect_log: LogWatch) -> None:
    """A reason is not an error: containerd gets an ordinary directory, and the snapshot has the reason."""
    async with snapshotting(store, folder) as setting:
        expect_log("is not lazy: the layer .* has no TOC")
        error = NotLazy("has no TOC")
        setting.resolver.error, setting.resolver.lost = (error, None) if at == "resolve" else (None, error)
        (mount,) = await setting.snapshotter.prepare("extract 0", "", labels_of(0))
        assert mount.source == str(setting.folders.fs(1))
        assert (await setting.snapshotter.stat("extract 0")).reason == f"{lazy_layer(0).digest} cannot be lazy: has no TOC"
        assert not setting.layers.expected


async def test_a_full_disk_is_a_reason_and_a_warning(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """A fault of the machine is logged: the layer's reason alone would not show it."""
    async with snapshotting(store, folder) as setting:
        expect_log("cannot serve layer .* lazily: no space")
        expect_log("is not lazy")
        setting.resolver.error = StoreFull("no space")
        await setting.snapshotter.prepare("extract 0", "", labels_of(0))
        assert setting.rows == [("extract 0", "active")]


async def test_a_silent_registry_costs_a_deadline(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """Then containerd unpacks the layer, if it can."""
    async with snapshotting(store, folder) as setting:
        expect_log("is not lazy: the layer could not be resolved within")
        setting.resolver.gate = trio.Event()
        began = trio.current_time()
        await setting.snapshotter.prepare("extract 0", "", labels_of(0))
        assert trio.current_time() - began == pytest.approx(DEADLINE)


async def test_two_who_prepare_the_same_layer(store: Store, folder: Path) -> None:
    """Both get AlreadyExists; there is one snapshot, and one pull."""
    async with snapshotting(store, folder) as setting:
        setting.resolver.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lazily, setting)
            await wait_all_tasks_blocked()
            setting.resolver.gate.set()
        assert setting.rows == [(NAME, "lazy")] and setting.layers.expected == [name_of(lazy_layer(0))]


async def test_a_prepare_that_is_given_up(store: Store, folder: Path) -> None:
    """While the layer is resolved: nothing is left, and the next one is answered."""
    async with snapshotting(store, folder) as setting:
        setting.resolver.gate = trio.Event()
        with trio.move_on_after(1):
            await lazily(setting)
        assert setting.rows == [] and setting.directories == [] and not setting.layers.pulled
        setting.resolver.gate.set()
        await lazily(setting)


async def test_labels_of_nobody_s_make_an_ordinary_snapshot(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """A target without image and blob: the client sent no annotations. A view never is a layer."""
    async with snapshotting(store, folder) as setting:
        expect_log("is not lazy")
        await setting.snapshotter.prepare("extract 0", "", {TARGET: "chain-0"})
        assert "which image" in (await setting.snapshotter.stat("extract 0")).reason
        await setting.snapshotter.prepare("view", "", labels_of(0), "view")
        assert setting.rows == [("extract 0", "active"), ("view", "view")] and not setting.resolver.asked


@pytest.mark.parametrize(("kind", "options"), [("active", ("rw", "rbind")), ("view", ("ro", "rbind"))])
async def test_a_container_on_lazy_layers(
    store: Store, folder: Path, kind: str, options: tuple[str, ...], owners: dict[str, object]
) -> None:
    """Its root is mounted by us and bound by containerd; its layers are in use as long as it is there, and once for each root."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        (mount,) = await setting.snapshotter.prepare("container", NAME, {}, kind)  # type: ignore[arg-type]
        assert mount == MountSpec("bind", str(setting.folders.root(2)), options)
        assert setting.layers.used() == [0] and setting.roots.there == {2}
        assert owners[str(setting.folders.fs(2))] == (7, 8) and setting.folders.fs(2).stat().st_mode & 0o7777 == 0o711
        assert await setting.snapshotter.mounts("container") == (mount,)
        assert setting.layers.uses == {name_of(lazy_layer(0)): 1}
        assert setting.snapshotter.roots_on({name_of(lazy_layer(0))}) == [setting.folders.root(2)]
        assert setting.snapshotter.roots_on({name_of(lazy_layer(1))}) == []
        await setting.snapshotter.remove("container")
        assert setting.layers.used() == [] and setting.snapshotter.roots_on({name_of(lazy_layer(0))}) == []
        await wait_all_tasks_blocked()
        assert setting.roots.there == set() and setting.directories == []
        assert setting.layers.expected == [name_of(lazy_layer(0))]


async def test_unpacking_on_lazy_layers(store: Store, folder: Path) -> None:
    """Metadata is all it needs: no root of ours, and no layer is in use for it."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        (mount,) = await setting.snapshotter.prepare(EXTRACT, NAME, {})
        assert mount.type == "overlay" and f"lowerdir=/lower/{lazy_layer(0).digest[7:15]}" in mount.options
        assert f"upperdir={setting.folders.fs(2)}" in mount.options
        assert setting.layers.used() == [] and setting.roots.done == ["lower 2"]
        setting.roots.error = OSError("no loop device")
        with pytest.raises(StoreUnusable, match="no loop device"):
            await setting.snapshotter.mounts(EXTRACT)


async def test_a_root_that_cannot_be_mounted_leaves_nothing(store: Store, folder: Path) -> None:
    """Neither a row nor a directory nor a use."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        setting.roots.error = MountFailed("no EROFS")
        with pytest.raises(MountFailed, match="no EROFS"):
            await container(setting)
        assert setting.rows == [(NAME, "lazy")] and setting.directories == [] and setting.layers.used() == []


async def test_a_container_that_is_given_up_leaves_nothing(store: Store, folder: Path) -> None:
    """Cancelled while the metadata of its layers is built."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        setting.resolver.ready = trio.Event()
        with trio.move_on_after(1):
            await container(setting)
        assert trio.current_time() == pytest.approx(1)
        assert setting.rows == [(NAME, "lazy")] and setting.directories == [] and setting.layers.used() == []


async def test_metadata_that_is_lost(store: Store, folder: Path) -> None:
    """And cannot be had again: an error, and nothing is left of the try."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        setting.resolver.lost = StoreUnusable("the TOC is lost")
        with pytest.raises(StoreUnusable, match="is lost"):
            await container(setting)
        assert setting.rows == [(NAME, "lazy")] and setting.layers.used() == []


async def test_what_an_earlier_process_made_is_not_taken_back(store: Store, folder: Path) -> None:
    """Its Prepare is repeated, and fails: containerd may have got the first answer, and a container may use it."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        await container(setting)
        async with snapshotting(store, folder) as next_one:
            next_one.roots.error = MountFailed("no EROFS")
            with pytest.raises(MountFailed):
                await container(next_one)
            assert ("container", "active") in next_one.rows and 2 in next_one.directories
            next_one.roots.error = None
            assert await container(next_one) == await next_one.snapshotter.mounts("container")
            assert next_one.layers.uses == {name_of(lazy_layer(0)): 1}
            with pytest.raises(SnapshotExists):
                await next_one.snapshotter.prepare("container", "", {})


async def test_mounts_of_what_has_none(store: Store, folder: Path) -> None:
    """A committed snapshot, and one that is not there."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        with pytest.raises(SnapshotBusy, match="is committed"):
            await setting.snapshotter.mounts(NAME)
        with pytest.raises(SnapshotNotFound):
            await setting.snapshotter.mounts("nothing")


async def test_directories_that_a_power_cut_took(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """Missing directories are created again: the row was synced at once, they were not."""
    async with snapshotting(store, folder) as setting:
        expect_log("are missing, and with them its changes")
        await container(setting, parent="")
        setting.roots.remove(1)
        (mount,) = await setting.snapshotter.mounts("container")
        assert Path(mount.source).is_dir()


async def test_a_snapshot_shows_its_parent_s_root(store: Store, folder: Path, owners: dict[str, tuple[int, int]]) -> None:
    """Owner and mode of what was unpacked."""
    async with snapshotting(store, folder) as setting:
        await setting.snapshotter.prepare("a", "", {})
        setting.folders.fs(1).chmod(0o1700)
        await setting.snapshotter.commit("a", "base", {})
        await container(setting, parent="base")
        assert setting.folders.fs(2).stat().st_mode & 0o7777 == 0o1700
        assert owners[str(setting.folders.fs(2))] == (os.geteuid(), os.getegid())


async def test_committed(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked files are synced before the answer; its mount and its uses are released, and its size is known."""
    async with snapshotting(store, folder) as setting:
        order: list[str] = []
        monkeypatch.setattr(store.durability, "sync_all", lambda: order.append(f"synced {setting.rows[-1][1]}"))
        await lazily(setting)
        await setting.snapshotter.prepare(EXTRACT, NAME, {})
        (setting.folders.fs(2) / "file").write_bytes(b"x" * 5000)
        await setting.snapshotter.commit(EXTRACT, "top", {"a": "b"})
        assert order == ["synced active"] and setting.roots.done[-1] == "take away 2"
        assert (await setting.snapshotter.stat("top")).labels == {"a": "b"}
        assert (await setting.snapshotter.usage("top")).size >= 5000
        await container(setting)
        await setting.snapshotter.commit("container", "changed", {})
        assert setting.layers.used() == [] and order == ["synced active"]


async def test_a_commit_that_an_earlier_process_carried_out(store: Store, folder: Path) -> None:
    """Is answered as done; in the same process it is an error."""
    async with snapshotting(store, folder) as setting:
        await container(setting, parent="")
        await setting.snapshotter.commit("container", "name", {})
        with pytest.raises(SnapshotExists):
            await setting.snapshotter.commit("container", "name", {})
        async with snapshotting(store, folder) as next_one:
            await next_one.snapshotter.commit("container", "name", {})
            with pytest.raises(SnapshotNotFound):
                await next_one.snapshotter.commit("nothing", "else", {})


async def test_a_commit_that_is_refused_changes_nothing(store: Store, folder: Path) -> None:
    """A view cannot be committed, and its root stays mounted."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        await setting.snapshotter.prepare("view", NAME, {}, "view")
        with pytest.raises(SnapshotBusy):
            await setting.snapshotter.commit("view", "name", {})
        assert setting.roots.there == {2} and setting.layers.used() == [0]


async def test_removed(store: Store, folder: Path) -> None:
    """Not what others stand on; of a lazy layer its pull ends. What was on the disk goes behind the caller's back."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        await container(setting)
        with pytest.raises(SnapshotBusy, match="is its child"):
            await setting.snapshotter.remove(NAME)
        assert setting.layers.expected and setting.layers.used() == [0]
        await setting.snapshotter.remove("container")
        assert setting.roots.there == {2}
        await setting.snapshotter.remove(NAME)
        assert setting.rows == [] and not setting.layers.expected
        with pytest.raises(SnapshotNotFound):
            await setting.snapshotter.remove(NAME)


async def test_usage(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lazy layer what of its objects is here; of an active snapshot what it has on the disk."""
    async with snapshotting(store, folder) as setting:
        asked: list[list[str]] = []
        monkeypatch.setattr(store, "usage", lambda names: (asked.append(list(names)), (1, 100))[1])
        await lazily(setting)
        await trio.sleep(2)
        assert await setting.snapshotter.usage(NAME) == Usage(1, 100) and asked == [[f"object of {lazy_layer(0).digest}"]]
        await container(setting, parent="")
        (setting.folders.fs(2) / "file").write_bytes(b"x" * 5000)
        active = await setting.snapshotter.usage("container")
        assert active.inodes == 2 and active.size >= 5000


async def test_objects_are_noted_in_a_lull(store: Store, folder: Path) -> None:
    """While containerd asks for one layer after the other, it does not wait for sqlite."""
    async with snapshotting(store, folder) as setting:
        await lazily(setting)
        await trio.sleep(0.5)
        setting.layers.quiet_period.note_request()
        await trio.sleep(0.8)
        assert setting.snapshotter.snapshots.first_objects(NAME) == []
        await trio.sleep(0.5)
        assert setting.snapshotter.snapshots.first_objects(NAME) == [f"object of {lazy_layer(0).digest}"]
        assert setting.snapshotter.snapshots.without_objects() == ()


async def test_what_cannot_be_noted_is_a_warning(store: Store, folder: Path, expect_log: LogWatch) -> None:
    """The TOC was lost: the disk usage of the layer is unknown, and everything else works."""
    async with snapshotting(store, folder) as setting:
        expect_log("cannot record the disk usage of layer")
        await lazily(setting)
        async with snapshotting(store, folder) as next_one:
            await next_one.snapshotter.start()
            await trio.sleep(60)
            assert next_one.rows == [(NAME, "lazy")]


async def test_cleanup_and_a_snapshot_that_comes_meanwhile(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its row before its directory: it stays."""
    async with snapshotting(store, folder) as setting:
        setting.folders.fs(50).mkdir(parents=True)
        ids = setting.snapshotter.snapshots.ids

        def late() -> frozenset[int]:
            found = ids()
            setting.snapshotter.snapshots.create("late", "", "active", {})
            setting.folders.fs(1).mkdir(parents=True)
            return found

        monkeypatch.setattr(setting.snapshotter.snapshots, "ids", late)
        await setting.snapshotter.cleanup()
        await wait_all_tasks_blocked()
        assert setting.directories == [1]
