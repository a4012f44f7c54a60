"""A store that is bounded, and made smaller, while images are mounted from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Lazyfs
from tests.lazyfsd import moments, remains
from tests.small_image import SmallImage, build, large_file

pytestmark = pytest.mark.fuse

MODES = [pytest.param("native", marks=pytest.mark.root), "portable"]


@pytest.fixture(scope="session")
def other(session_folder: Path) -> SmallImage:
    """An image that shares no file with the small one."""
    return build(session_folder / "other", seed="other")


def objects(lazyfs: Lazyfs) -> set[str]:
    return set(os.listdir(lazyfs.store / "objects"))


def info(lazyfs: Lazyfs) -> dict[str, Any]:
    usage: dict[str, Any] = lazyfs.json("store", "info", "--store", lazyfs.store)
    return usage


@pytest.mark.parametrize("mode", MODES)
def test_prune_leaves_what_is_mounted(lazyfs: Lazyfs, small: SmallImage, other: SmallImage, mode: str) -> None:
    """What only an unmounted image needs goes, the rest stays; with --all that goes as well, and comes back when it is read."""
    with lazyfs.mounted(other.converted, "--background", "wait", mode=mode):
        pass
    with lazyfs.mounted(small.converted, "--background", "wait", mode=mode) as root:
        before = objects(lazyfs)
        freed = lazyfs.json("prune", "--older-than", "1h", "--store", lazyfs.store)
        assert (freed["objects"], freed["bytes"]) == (0, 0)
        freed = lazyfs.json("prune", "--store", lazyfs.store)
        assert freed["objects"] == len(before - objects(lazyfs)) > len(other.files) * 0.9
        assert freed["bytes"] > sum(len(data) for data in other.files.values()) * 0.9
        assert lazyfs.json("status", root)["missing_chunks"] == 0
        assert not small.wrong_files(root)
        said = lazyfs.run("prune", "--all", "--store", lazyfs.store).stdout.decode()
        assert "removed" in said
        assert not small.wrong_files(root)
        assert not small.wrong_files(root)
    lazyfs.run("prune", "--store", lazyfs.store)
    assert objects(lazyfs) == set()
    assert remains(lazyfs.store) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_store_that_is_too_small(lazyfs: Lazyfs, small: SmallImage, other: SmallImage, mode: str) -> None:
    """What nobody has mounted makes room, down to the limit, which the store keeps; every byte is right all the while."""
    with lazyfs.mounted(other.converted, "--background", "wait", mode=mode):
        used = info(lazyfs)["used_bytes"]
    with lazyfs.mounted(small.converted, "--background", "wait", "--store-size", str(used), mode=mode) as root:
        for _ in moments():
            usage = info(lazyfs)
            if usage["used_bytes"] <= used:
                break
        else:
            raise AssertionError(f"the store stays too large: {usage}")
        assert usage["limit_bytes"] == used
        assert not small.wrong_files(root)
        with (root / large_file(3)).open("rb") as file:
            begun = file.read(1000)
            lazyfs.run("prune", "--all", "--store", lazyfs.store)
            assert begun + file.read() == small.files[large_file(3)]
    with lazyfs.mounted(other.converted, "--background", "off", mode=mode) as root:
        assert info(lazyfs)["limit_bytes"] == used
        assert not other.wrong_files(root)
    assert remains(lazyfs.store) == []


@pytest.mark.root
def test_what_is_open_is_reported_apart(lazyfs: Lazyfs, small: SmallImage) -> None:
    """An object that was removed under a reader is read to its end, and counts until then."""
    with lazyfs.mounted(small.converted, "--background", "wait", mode="native") as root:
        name = large_file(7)
        with (root / name).open("rb") as file:
            file.read(1)
            freed = lazyfs.json("prune", "--all", "--store", lazyfs.store)
            assert freed["held_bytes"] >= len(small.files[name])
            assert info(lazyfs)["held_bytes"] >= len(small.files[name])
            assert file.read() == small.files[name][1:]
        lazyfs.run("prune", "--store", lazyfs.store)
        assert info(lazyfs)["held_bytes"] == 0, "what nobody has open is still held"


@pytest.mark.root
def test_what_lazyfsd_leaves_is_on_the_disk(lazyfs: Lazyfs, session_folder: Path) -> None:
    """Also what was still arriving when it ended: a power cut costs nothing after a clean end."""
    image = build(session_folder / "arriving", 3000, "arriving")
    with lazyfs.mounted(image.converted, "--background", "on", mode="native"):
        for _ in moments():
            if objects(lazyfs):
                break
    assert remains(lazyfs.store) == []
    assert objects(lazyfs)
    assert info(lazyfs)["durable"]
