"""Four images through a store that has room for two, all mounted, and read while their objects come and go."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Lazyfs
from tests.lazyfsd import Lazyfsd, moments, remains
from tests.readers import Readers
from tests.small_image import LARGE, SmallImage, build, large_file

pytestmark = [pytest.mark.fuse, pytest.mark.root]

IMAGES = 4


@pytest.fixture(scope="module")
def images(session_folder: Path) -> list[SmallImage]:
    """They share next to nothing."""
    return [build(session_folder / f"evicted-{number}", 200, seed=f"evicted {number}") for number in range(IMAGES)]


class Holder:
    """Large files of a mount, opened and read only at their beginnings."""

    def __init__(self, root: Path, image: SmallImage) -> None:
        self._image = image
        self._stack = ExitStack()
        names = [large_file(number) for number in range(LARGE)]
        self._files = {name: self._stack.enter_context((root / name).open("rb", buffering=0)) for name in names}
        self._begun = {name: file.read(1000) for name, file in self._files.items()}

    def check(self) -> None:
        """The rest of each is right, and is read from the disk or from wherever it has gone."""
        for name, file in self._files.items():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert self._begun[name] + file.read() == self._image.files[name]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def info(lazyfs: Lazyfs) -> dict[str, Any]:
    usage: dict[str, Any] = lazyfs.json("store", "info", "--store", lazyfs.store)
    return usage


@pytest.fixture
def size(lazyfs: Lazyfs, images: list[SmallImage]) -> int:
    """Bytes that two of the images take, when their files and metadata are there."""
    with lazyfs.mounted(images[0].converted, "--background", "wait", mode="native"):
        pass
    used = info(lazyfs)["used_bytes"]
    assert isinstance(used, int)
    return 2 * used


def test_four_images_in_a_store_for_two(lazyfs: Lazyfs, images: list[SmallImage], size: int, reader: Readers) -> None:
    """Whoever reads while objects are removed and come back sees every byte right; so does who had a file open all the while."""
    with ExitStack() as stack:
        roots, holders = [], []
        for image in images:
            options = ("--background", "wait", "--store-size", str(size))
            roots.append(stack.enter_context(lazyfs.mounted(image.converted, *options, mode="native")))
            holder = Holder(roots[-1], image)
            stack.enter_context(holder)
            holders.append(holder)
        stack.enter_context(reader)
        for _ in moments():
            if (usage := info(lazyfs))["used_bytes"] - usage["held_bytes"] <= size:
                break
        else:
            raise AssertionError(f"the store stays too large: {usage}")
        lazyfsd = Lazyfsd(lazyfs.store)
        assert any(lazyfsd.count(root, "missing_chunks") for root in roots)
        for _ in range(2):
            readers = [reader(root, image.files, number) for number, (root, image) in enumerate(zip(roots, images, strict=True))]
            for each in readers:
                each.check()
            lazyfs.run("prune", "--all", "--store", lazyfs.store)
        for holder in holders:
            holder.check()
    assert remains(lazyfs.store) == []
