"""Images that nobody has converted: mounted all the same, after each layer has been fetched whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Lazyfs
from tests.lying_registry import LyingRegistry
from tests.small_image import SmallImage
from tests.tree import Record, compare, walk
from tests.unit.registry.scripted import Reply, Request

pytestmark = pytest.mark.fuse

MODES = ["portable", pytest.param("native", marks=pytest.mark.root)]
Named = Callable[[str], str]


def wrong_files(directory: Path, small: SmallImage) -> list[str]:
    """The files that do not read back as they should."""
    return [name for name, data in small.files.items() if (directory / name).read_bytes() != data]


def read_past_the_cache(path: Path) -> bytes:
    """All of a file, asked of its file system."""
    with open(os.open(path, os.O_RDONLY | os.O_DIRECT), "rb", buffering=0) as file:
        return file.readall()


@pytest.mark.images
@pytest.mark.registry
@pytest.mark.umoci
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["debian", "python", "edge"])
def test_unconverted_tree_is_the_unpacked_one(
    name: str, mode: str, lazyfs: Lazyfs, originals: Named, unpacked: Callable[[str], dict[bytes, Record]]
) -> None:
    """Every entry equals, and nothing was fetched but the layers."""
    with lazyfs.mounted(originals(name), mode=mode) as root:
        assert not compare(unpacked(name), walk(root))
        status = lazyfs.json("status", root)
        assert status["complete"] and status["requests"] == 0
        assert all("vouches for no TOC" in layer["reason"] for layer in status["layer_states"])


@pytest.mark.parametrize("mode", MODES)
def test_registry_is_needed_once(small: SmallImage, mode: str, lazyfs: Lazyfs) -> None:
    """The second mount, by digest, needs no registry: names and files are here."""
    with LyingRegistry(small.original) as registry:
        with lazyfs.mounted(f"{registry.image}:v1", mode=mode) as root:
            assert not wrong_files(root, small)
            image = lazyfs.json("status", root)["image"]
        asked = len(registry.server.requests)
        with lazyfs.mounted(image, mode=mode) as root:
            assert len(registry.server.requests) == asked
    with lazyfs.mounted(image, mode=mode) as root:
        assert not wrong_files(root, small)


def test_each_layer_is_told_in_a_line(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Which, how many bytes, and the command that would have saved them; once."""
    image = f"oci:{small.original}:v1"
    for lines in (2, 0):
        directory = tmp_path / f"mount-{lines}"
        directory.mkdir()
        told = lazyfs.run("mount", image, directory, "--store", lazyfs.store, "--mode", "portable").stderr.decode()
        lazyfs.run("umount", directory)
        assert len(told.splitlines()) == lines
        for line in told.splitlines():
            assert "MB are fetched whole" in line and f"`lazyfs convert oci:{small.original}@sha256:" in line


def test_removed_objects_bring_the_layer_again(small: SmallImage, lazyfs: Lazyfs) -> None:
    """While it is mounted: every byte is right, and the layer has come once more."""
    with LyingRegistry(small.original) as registry:
        with lazyfs.mounted(f"{registry.image}:v1", "--background", "off") as root:
            before = len(registry.ranges)
            for path in (lazyfs.store / "objects").iterdir():
                path.unlink()
            for name, data in small.files.items():
                assert read_past_the_cache(root / name) == data
            assert len(registry.ranges) <= 2 * before
            status = lazyfs.json("status", root)
            assert status["complete"] and 1 <= status["requests"] <= 2


def test_killed_while_a_layer_is_fetched(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """kill -9 in the middle leaves nothing but room, and the next mount fetches what is missing."""
    directory = tmp_path / "mount"
    directory.mkdir()

    def stall(request: Request, right: bytes) -> Reply:
        return Reply(right[:-1000], "silence") if "range" in request.headers else Reply(right)

    with LyingRegistry(small.original) as registry:
        registry.lie = stall
        command = [sys.executable, "-m", "lazyfs", "mount", f"{registry.image}:v1", directory, "--store", lazyfs.store]
        process = subprocess.Popen(
            [*command, "--mode", "portable", "--foreground"], env=lazyfs.environment, stderr=subprocess.PIPE
        )
        try:
            assert process.stderr is not None
            assert b"is not lazy" in process.stderr.readline()
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        registry.lie = None
        with lazyfs.mounted(f"{registry.image}:v1") as root:
            assert not wrong_files(root, small)
    assert not list((lazyfs.store / "partial").iterdir())
