"""The mounts for containerd, as its own overlayfs snapshotter would return them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.containerd.mounts import MountSpec, SnapshotFolders, bind, overlay_mounts
from lazyfs.snapshots.snapshot import Kind, Snapshot

FOLDERS = SnapshotFolders(Path("/store/snapshots"))
LOWER = [Path("/store/snapshots/1/fs"), Path("/store/layers/two"), Path("/store/snapshots/3/fs")]


def snapshot(kind: Kind) -> Snapshot:
    return Snapshot(7, "key", "", kind, {}, 0, 0)


def test_everything_of_a_snapshot_is_in_its_own_folder() -> None:
    """Which its number names, never its key."""
    assert FOLDERS.of(7) == Path("/store/snapshots/7")
    assert {path.parent for path in (FOLDERS.fs(7), FOLDERS.work(7), FOLDERS.root(7))} == {FOLDERS.of(7)}
    assert len({FOLDERS.fs(7), FOLDERS.work(7), FOLDERS.root(7)}) == 3


@pytest.mark.parametrize(("read_only", "mode"), [(True, "ro"), (False, "rw")])
def test_a_directory_as_it_is(read_only: bool, mode: str) -> None:
    """One bind, with all that is mounted below."""
    assert bind(Path("/there"), read_only=read_only) == (MountSpec("bind", "/there", (mode, "rbind")),)


@pytest.mark.parametrize(("kind", "mode"), [("view", "ro"), ("active", "rw")])
def test_on_nothing(kind: Kind, mode: str) -> None:
    """An overlay needs something below: a snapshot on nothing is its own directory."""
    assert overlay_mounts(snapshot(kind), FOLDERS, [], index_off=True) == (
        MountSpec("bind", "/store/snapshots/7/fs", (mode, "rbind")),
    )


def test_a_view_of_one_layer_is_that_layer() -> None:
    """Without an overlay, which wants two of them."""
    assert overlay_mounts(snapshot("view"), FOLDERS, LOWER[:1], index_off=True) == (
        MountSpec("bind", str(LOWER[0]), ("ro", "rbind")),
    )


@pytest.mark.parametrize("index_off", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_an_overlay(count: int, index_off: bool) -> None:
    """An active one has its own directories, a view none; the topmost layer is named first; `index` only where the kernel has it."""
    head = ("index=off",) if index_off else ()
    lower = "lowerdir=" + ":".join(map(str, LOWER[:count][::-1]))
    [active] = overlay_mounts(snapshot("active"), FOLDERS, LOWER[:count], index_off=index_off)
    own = ("workdir=/store/snapshots/7/work", "upperdir=/store/snapshots/7/fs")
    assert active == MountSpec("overlay", "overlay", (*head, *own, lower))
    if count > 1:
        [view] = overlay_mounts(snapshot("view"), FOLDERS, LOWER[:count], index_off=index_off)
        assert view == MountSpec("overlay", "overlay", (*head, lower))
