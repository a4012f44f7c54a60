"""The kernel's table of mounts, as we read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.kernel.mountinfo import MountInfo
from lazyfs.mount import table
from lazyfs.mount.table import LazyfsMount, find_mount


def table_of(monkeypatch: pytest.MonkeyPatch, *mounts: MountInfo) -> None:
    """What the kernel's table shall hold."""
    monkeypatch.setattr(table, "mounts", lambda: list(mounts))


def test_a_mount_is_found_through_a_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lists a mount under the directory's real name, whatever the user called it."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mounted = LazyfsMount(real, "0:99", "docker://image", 0)
    monkeypatch.setattr(table, "our_mounts", lambda: [mounted])
    assert find_mount(real) == mounted
    assert find_mount(tmp_path / "link") == mounted
    assert find_mount(tmp_path) is None


def test_the_uppermost_of_two_mounts_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest of several at one place is the one that is seen, and the one to take away first."""
    below, above = LazyfsMount(tmp_path, "0:98", "below", 0), LazyfsMount(tmp_path, "0:99", "above", 0)
    monkeypatch.setattr(table, "our_mounts", lambda: [below, above])
    assert find_mount(tmp_path) == above


def overlay(path: Path, *options: str, source: str = "lazyfs:oci:/image@sha256:0") -> MountInfo:
    return MountInfo(path, "0:99", "overlay", source, options)


def test_both_kinds_are_ours_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A native mount names its store, where the kernel's table does; the gate and other people's overlays are not ours."""
    table_of(
        monkeypatch,
        MountInfo(Path("/a"), "0:1", "fuse.lazyfs", "docker://image", ("rw", "user_id=1000")),
        overlay(Path("/b"), "ro", "lowerdir+=/s/layers/x", "datadir+=/s/objects", "datadir+=/s/gate", "datadir+=/s/arrived"),
        overlay(Path("/c"), "ro", "datadir+=/proc/self/fd/7"),
        overlay(Path("/d"), "rw", source="overlay"),
        MountInfo(Path("/s/gate"), "0:2", "fuse.lazyfs-gate", "lazyfsd", ()),
    )
    assert table.our_mounts() == [
        LazyfsMount(Path("/a"), "0:1", "docker://image", 1000),
        LazyfsMount(Path("/b"), "0:99", "oci:/image@sha256:0", 0, "native", Path("/s")),
        LazyfsMount(Path("/c"), "0:99", "oci:/image@sha256:0", 0, "native", None),
    ]


def test_mounts_of_ours_are_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way to a mount inside of a dead one nothing of the dead one is touched; links that lead there are followed up to it."""
    dead, inside = tmp_path / "dead", tmp_path / "dead" / "inside" / "deeper"
    (tmp_path / "link").symlink_to("dead/inside")
    (tmp_path / "loop").symlink_to("loop")
    dead.mkdir()
    table_of(monkeypatch, overlay(dead), overlay(inside))
    touched: list[str] = []
    readlink = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: (touched.append(str(path)), readlink(path))[1])
    for way in (inside, tmp_path / "link" / "deeper", tmp_path / "link" / ".." / "inside" / "deeper"):
        found = find_mount(way)
        assert found is not None
        assert found.path == inside
    monkeypatch.chdir(tmp_path)
    assert find_mount(Path("link/x/../deeper")) == find_mount(inside)
    assert find_mount(Path("dead")) == find_mount(dead)
    assert find_mount(tmp_path / "loop" / "dead") is None
    assert table.absolute(tmp_path / "link" / "deeper") == inside
    assert not [path for path in touched if path == str(dead) or path.startswith(f"{dead}/")]


def test_links_lead_where_realpath_says(tmp_path: Path) -> None:
    """Where no mount of ours is on the way, `absolute` is what os.path.realpath makes of the parent."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "up").symlink_to("../a/./b/..")
    (tmp_path / "far").symlink_to(tmp_path / "a" / "up")
    (tmp_path / "gone").symlink_to("nowhere")
    for way in ("far/b/x", "a/up/up/b/x", "gone/y/x", "missing/x", "a/b/far"):
        assert table.absolute(tmp_path / way) == Path(os.path.realpath((tmp_path / way).parent)) / Path(way).name
    assert table.absolute(Path("/")) == Path("/")
