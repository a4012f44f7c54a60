"""What containerd is told to mount, as containerd's own overlayfs snapshotter would say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.containerd.mounts import Mount, Place, bind, ordinary
from lazyfs.snapshots.snapshot import Kind, Snapshot

PLACE = Place(Path("/store/snapshots"))
LOWER = [Path("/store/snapshots/1/fs"), Path("/store/layers/two"), Path("/store/snapshots/3/fs")]


def snapshot(kind: Kind) -> Snapshot:
    return Snapshot(7, "key", "", kind, {}, 0, 0)


def test_everything_of_a_snapshot_is_in_its_own_folder() -> None:
    """Which its number names, never its key."""
    assert PLACE.of(7) == Path("/store/snapshots/7")
    assert {path.parent for path in (PLACE.fs(7), PLACE.work(7), PLACE.root(7))} == {PLACE.of(7)}
    assert len({PLACE.fs(7), PLACE.work(7), PLACE.root(7)}) == 3


@pytest.mark.parametrize(("read_only", "mode"), [(True, "ro"), (False, "rw")])
def test_a_directory_as_it_is(read_only: bool, mode: str) -> None:
    """One bind, with all that is mounted below."""
    assert bind(Path("/there"), read_only=read_only) == (Mount("bind", "/there", (mode, "rbind")),)


@pytest.mark.parametrize(("kind", "mode"), [("view", "ro"), ("active", "rw")])
def test_on_nothing(kind: Kind, mode: str) -> None:
    """An overlay needs something below: a snapshot on nothing is its own directory."""
    assert ordinary(snapshot(kind), PLACE, [], index_off=True) == (Mount("bind", "/store/snapshots/7/fs", (mode, "rbind")),)


def test_a_view_of_one_layer_is_that_layer() -> None:
    """Without an overlay, which wants two of them."""
    assert ordinary(snapshot("view"), PLACE, LOWER[:1], index_off=True) == (Mount("bind", str(LOWER[0]), ("ro", "rbind")),)


@pytest.mark.parametrize("index_off", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_an_overlay(count: int, index_off: bool) -> None:
    """An active one has its own directories, a view none; the topmost layer is named first; `index` only where the kernel has it."""
    head = ("index=off",) if index_off else ()
    lower = "lowerdir=" + ":".join(map(str, LOWER[:count][::-1]))
    [active] = ordinary(snapshot("active"), PLACE, LOWER[:count], index_off=index_off)
    own = ("workdir=/store/snapshots/7/work", "upperdir=/store/snapshots/7/fs")
    assert active == Mount("overlay", "overlay", (*head, *own, lower))
    if count > 1:
        [view] = ordinary(snapshot("view"), PLACE, LOWER[:count], index_off=index_off)
        assert view == Mount("overlay", "overlay", (*head, lower))
