"""What a snapshot leaves on the disk goes with it, whatever an image or a container has made of it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lazyfs.containerd.mounts import SnapshotFolders
from lazyfs.containerd.roots import Roots
from lazyfs.native.layers import LayerMounts


def test_directories_deeper_than_a_stack(tmp_path: Path) -> None:
    """An image may have 2,000 in one another: recursion would end in an error that is none of the disk's, and end lazyfsd."""
    folders = SnapshotFolders(tmp_path / "snapshots")
    folders.fs(1).mkdir(parents=True)
    folder = os.open(folders.fs(1), os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    roots = Roots(tmp_path, folders, LayerMounts(tmp_path))
    roots.remove(1)
    assert list(roots.directories()) == []
    roots.remove(1)  # nothing there is no error


def test_two_who_remove_the_same(tmp_path: Path) -> None:
    """A Remove, and the Cleanup behind it: all goes, and neither complains."""
    folders = SnapshotFolders(tmp_path / "snapshots")
    roots = Roots(tmp_path, folders, LayerMounts(tmp_path))
    for _ in range(5):
        for number in range(400):
            (folders.fs(1) / str(number % 20) / str(number)).mkdir(parents=True)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(roots.remove, [1] * 4))
        assert list(roots.directories()) == []
