"""The power fails in the middle of a full read, again and again: afterwards every file read natively is right.

Before each cut the journal of the file system is made to commit: names are on the disk then, and bytes that nobody has synced are not.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.commands import Lazyfs
from tests.disk import commit_names, cut, make_disk, mounted
from tests.lazyfsd import moments, remains
from tests.small_image import SmallImage, build

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def image(tmp_path: Path) -> SmallImage:
    """Large enough to be cut off in."""
    return build(tmp_path / "image", small_files=600, seed="power")


@pytest.mark.parametrize("cuts", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_power_cuts(cuts: int, image: SmallImage, tmp_path: Path) -> None:
    """Some of what arrived is kept, what did not reach the disk is fetched again, and no reader is told a wrong byte."""
    chance = random.Random(7)
    disk = tmp_path / "disk"
    make_disk(disk, 96 << 20)
    names = sorted(image.files)
    chance.shuffle(names)
    copies = [tmp_path / f"copy-{number}" for number in range(cuts)]
    with mounted(disk, tmp_path / "live") as file_system:
        lazyfs = lazyfs_on(file_system, tmp_path / "lazyfs")
        with lazyfs.mounted(image.converted, "--background", "off", mode="native") as root:
            for number, copy in enumerate(copies):
                for name in names[number * len(names) // cuts : (number + 1) * len(names) // cuts]:
                    assert (root / name).read_bytes() == image.files[name]
                if number == cuts // 2:
                    until_durable(lazyfs)
                commit_names(file_system)
                cut(file_system, disk, copy)
    dropped = kept = 0
    for number, copy in enumerate(copies):
        with mounted(copy, tmp_path / f"cut-{number}") as file_system:
            lazyfs = lazyfs_on(file_system, tmp_path / f"lazyfs-{number}")
            lazyfs.environment["LAZYFS_BOOT_ID"] = f"boot {number}"
            before = set(os.listdir(lazyfs.store / "objects"))
            with lazyfs.mounted(image.converted, "--background", "off", mode="native") as root:
                after = set(os.listdir(lazyfs.store / "objects"))
                dropped += len(before - after)
                kept += len(before & after)
                assert not image.wrong_files(root)
                assert not image.wrong_files(root)
            assert remains(lazyfs.store) == []
        copy.unlink()
    assert dropped, "no cut came between a name and its bytes: this has tested nothing"
    assert kept


def lazyfs_on(file_system: Path, folder: Path) -> Lazyfs:
    """The command line with its store on that file system."""
    lazyfs = Lazyfs(folder)
    lazyfs.store = file_system / "store"
    return lazyfs


def until_durable(lazyfs: Lazyfs) -> None:
    """lazyfsd syncs every few seconds."""
    for _ in moments():
        if lazyfs.json("store", "info", "--store", lazyfs.store)["durable"]:
            return
    raise AssertionError("what has arrived is never durable")
