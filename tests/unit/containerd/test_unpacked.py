"""What containerd has unpacked: cleaned of what overlayfs obeys, and counted."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.containerd import unpacked
from lazyfs.containerd.unpacked import strip, usage
from lazyfs.errors import StoreUnusable


@pytest.fixture
def tree(session_folder: Path, tmp_path: Path) -> Path:
    """An empty directory on a disk: not every file system under pytest's folders keeps trusted attributes."""
    path = session_folder / tmp_path.name
    path.mkdir()
    return path


def mark(path: Path, *names: str, value: bytes = b"y") -> None:
    for name in names:
        os.setxattr(path, name, value, follow_symlinks=False)


def attributes(path: Path) -> set[str]:
    return {name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(("trusted.", "user."))}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.root
def test_only_opaque_stays(tree: Path) -> None:
    """On every kind of file, the root itself included; other attributes, and what the links lead to, are let alone."""
    outside = tree.with_name(tree.name + "-outside")
    outside.mkdir()
    (outside / "file").touch()
    mark(outside / "file", "trusted.overlay.metacopy", value=b"")
    (tree / "folder").mkdir()
    (tree / "folder" / "file\udcff").write_bytes(b"x")
    (tree / "link").symlink_to(outside / "file")
    (tree / "dirlink").symlink_to(outside)
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "device", 0o020600, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tree / "socket"))
    bad = ("trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.overlay.opaque", "trusted.overlay.opaque2")
    everything = [tree, *(Path(folder) / name for folder, folders, files in os.walk(tree) for name in (*folders, *files))]
    assert len(everything) == 8
    for path in everything:
        mark(path, *bad)
        mark(path, "trusted.overlaying", "trusted.other")
    mark(tree, "trusted.overlay.opaque")
    mark(tree / "folder", "trusted.overlay.opaque", "user.overlay.metacopy")
    kept = {"trusted.overlaying", "trusted.other"}
    before = descriptors()
    assert strip(tree) == len(everything) * len(bad)
    assert descriptors() == before
    assert attributes(tree) == kept | {"trusted.overlay.opaque"}
    assert attributes(tree / "folder") == kept | {"trusted.overlay.opaque", "user.overlay.metacopy"}
    assert all(attributes(path) == kept for path in everything if path not in {tree, tree / "folder"})
    assert attributes(outside / "file") == {"trusted.overlay.metacopy"}
    assert strip(tree) == 0


@pytest.mark.root
def test_directories_named_like_whiteouts_go(tree: Path) -> None:
    """containerd creates them if a tar has entries below such a name, as in AUFS metadata; a lazy layer does not show them."""
    tree = tree / "fs"
    for path in (".wh..wh.plnk/1.2", ".wh.a/" + "deep/" * 1200, "d/.wh.b/x", "d/shown/.whx/y"):
        folder = os.open(tree.parent, os.O_RDONLY)
        for part in ("fs", *path.strip("/").split("/")):
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            below = os.open(part, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(folder)
    (tree / "linked").touch()
    os.link(tree / "linked", tree / ".wh..wh.plnk" / "3.4")
    os.mknod(tree / ".wh.device", 0o020600, os.makedev(0, 0))
    assert strip(tree) == 0
    assert sorted(os.listdir(tree)) == [".wh.device", "d", "linked"] and os.listdir(tree / "d") == ["shown"]
    assert os.listdir(tree / "d" / "shown") == [".whx"]
    assert (tree / "linked").stat().st_nlink == 1
    assert strip(tree) == 0


@pytest.mark.root
def test_opaque_is_a_directorys_and_says_yes(tree: Path) -> None:
    """Opaque means nothing on a file, and other values of it mean other things: those go."""
    (tree / "file").touch()
    (tree / "folder").mkdir()
    mark(tree / "file", "trusted.overlay.opaque")
    mark(tree / "folder", "trusted.overlay.opaque", value=b"x")
    assert strip(tree) == 2
    assert attributes(tree / "file") == attributes(tree / "folder") == set()


def deep_tree(tree: Path, depth: int) -> Iterator[int]:
    """Directories inside each other, far beyond the longest path; the descriptor of each."""
    folder = os.open(tree, os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir("d" * 100, dir_fd=folder)
            os.mkdir("sibling", dir_fd=folder)
            below = os.open("d" * 100, os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
            yield folder
    finally:
        os.close(folder)


@pytest.mark.root
def test_deep_trees(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep: everything is found, with as many open descriptors as on any other tree."""
    most = 0

    def watched(path: str | Path, flags: int, *, dir_fd: int | None = None) -> int:
        nonlocal most
        opened = os_open(path, flags, dir_fd=dir_fd)
        most = max(most, opened)
        return opened

    for folder in deep_tree(tree, 1500):
        os.setxattr(folder, "trusted.overlay.redirect", b"/object")
    os_open = os.open
    lowest = os_open(tree, os.O_DIRECTORY)
    os.close(lowest)
    monkeypatch.setattr(os, "open", watched)
    assert strip(tree) == 1500
    assert usage(tree)[0] == 1 + 2 * 1500
    assert most - lowest < 2 * unpacked._HELD
    monkeypatch.undo()
    subprocess.run(["rm", "-rf", tree], check=True)


@pytest.mark.root
def test_other_mounts_are_not_entered(tree: Path) -> None:
    """What is mounted inside is none of the layer's."""
    (tree / "mount").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tree / "mount"], check=True)
    try:
        (tree / "mount" / "file").write_bytes(b"x" * 8192)
        mark(tree / "mount" / "file", "trusted.overlay.redirect")
        assert strip(tree) == 0
        assert usage(tree)[0] == 1
        assert attributes(tree / "mount" / "file") == {"trusted.overlay.redirect"}
    finally:
        subprocess.run(["umount", tree / "mount"], check=True)


def test_usage_is_what_du_says(tree: Path) -> None:
    """Blocks, not lengths: holes are nothing; a file of several names counts once; directories, links and pipes are inodes."""
    assert usage(tree)[0] == 1
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "data").write_bytes(os.urandom(100_000))
    os.link(tree / "a" / "data", tree / "a" / "b" / "again")
    with (tree / "hole").open("wb") as file:
        file.truncate(1 << 30)
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    subprocess.run(["sync", "-f", tree], check=True)
    said = subprocess.run(["du", "-s", "-B1", tree], check=True, capture_output=True, text=True).stdout
    counted = subprocess.run(["du", "-s", "--inodes", tree], check=True, capture_output=True, text=True).stdout
    assert usage(tree) == (int(counted.split()[0]), int(said.split()[0]))


def test_what_vanishes_is_not_counted(tree: Path) -> None:
    """A container may write while it is counted: no way of going away is an error."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            (tree / "x" / "y" / "z").mkdir(parents=True, exist_ok=True)
            (tree / "x" / "y" / "file").touch()
            (tree / "x").rename(tree / "moved")
            (tree / "moved" / "y" / "file").unlink()
            (tree / "moved" / "y" / "z").rmdir()
            (tree / "moved" / "y").rmdir()
            (tree / "moved").rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(1 <= usage(tree)[0] <= 10 for _ in range(2000))
    finally:
        stop.set()
        thread.join()


def test_what_moves_far_below_is_reported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the way back is through `..`, another directory there is noticed, never walked into."""
    monkeypatch.setattr(unpacked, "_HELD", 1)
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "elsewhere").mkdir()
    before = descriptors()
    walk = unpacked._walk(tree / "a")
    for _, name, _ in walk:
        if name == "c":
            (tree / "a" / "b").rename(tree / "elsewhere" / "b")
            break
    with pytest.raises(OSError, match="moved meanwhile"):
        list(walk)
    assert descriptors() == before


def test_what_is_no_directory_is_reported(tree: Path) -> None:
    """A missing directory, a file, a link to a directory: in words."""
    (tree / "file").touch()
    (tree / "link").symlink_to(tree)
    for path in (tree / "none", tree / "file", tree / "link"):
        with pytest.raises(StoreUnusable, match="cannot read what was unpacked"):
            usage(path)
        with pytest.raises(StoreUnusable, match="cannot read what was unpacked"):
            strip(path)
