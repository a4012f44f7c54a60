"""The pull finishes: in which order things arrive, that nothing arrives twice, and what works when all is here."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.cli.main import main
from lazyfs.format.entry import PREFETCH_LANDMARK
from lazyfs.mount.table import find_mount
from tests.commands import Lazyfs
from tests.docker_registry import Registry
from tests.lying_registry import LyingRegistry
from tests.small_image import SmallImage, large_file, listed, small_file

pytestmark = pytest.mark.fuse


@pytest.mark.registry
def test_complete_image_needs_no_registry(lazyfs: Lazyfs, registry: Registry, small: SmallImage) -> None:
    """After `--background wait` the registry may go, and so may the mount's process: everything reads back, in a new mount too."""
    image = registry.push(small.converted, "small:v1")[:-3] + f"@{small.digest}"
    with lazyfs.mounted(image, "--background", "wait") as root:
        status = lazyfs.json("status", root)
        assert status["complete"] and not status["missing_chunks"] and not status["trouble"]
        registry.stop()
        assert not small.wrong_files(root)
        os.kill(status["pid"], signal.SIGKILL)
        lazyfs.run("umount", root)
        assert find_mount(root) is None
    with lazyfs.mounted(image) as root:
        assert not small.wrong_files(root)
        status = lazyfs.json("status", root)
        assert status["complete"] and not status["requests"] and not status["errors"]


@pytest.mark.registry
def test_second_mount_fetches_nothing(lazyfs: Lazyfs, registry: Registry, small: SmallImage) -> None:
    """What one mount has fetched another one of the same image, or of another one with the same files, takes from the store."""
    image = registry.push(small.converted, "small:v1")
    with lazyfs.mounted(image, "--background", "wait") as one:
        asked = len(registry.requests())
        with lazyfs.mounted(registry.push(small.converted, "other:v1"), "--background", "wait") as other:
            assert not small.wrong_files(one) and not small.wrong_files(other)
        asked_again = [request for request in registry.blob_requests(asked) if "lazyfs" in request.agent]
        assert not asked_again


@pytest.mark.registry
def test_two_mounts_at_the_same_moment_fetch_nothing_twice(lazyfs: Lazyfs, registry: Registry, small: SmallImage) -> None:
    """Two processes that read the same cold files side by side share every chunk, whoever of them fetches it."""
    image = registry.push(small.converted, "small:v1")
    with lazyfs.mounted(image, "--background", "off") as one, lazyfs.mounted(image, "--background", "off") as other:
        with ThreadPoolExecutor() as readers:
            assert list(readers.map(small.wrong_files, [one, other] * 2)) == [[]] * 4
        first, second = lazyfs.json("status", one), lazyfs.json("status", other)
    # The landmarks of the two layers are one chunk, which nobody reads.
    assert (
        first["chunks"] + second["chunks"]
        == len({chunk.digest for _, entry in listed(small.layout) for chunk in entry.chunks}) - 1
    )
    blobs = first["layer_bytes"]
    sent = sum(request.size for request in registry.blob_requests() if request.status == 206)
    # Runs read over small gaps that the other mount is filling, and both asked for the TOC.
    assert sent < 1.3 * blobs


def test_prefix_before_the_landmark_comes_first(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """What the image's author has prioritised arrives before all else, in one request of its own."""
    wanted = [large_file(5), small_file(7), "bin/tool"]
    (tmp_path / "record").write_text("\n".join(wanted))
    target = tmp_path / "prioritised"
    assert (
        main(["convert", small.converted, f"oci:{target}:v1", "--prioritize", str(tmp_path / "record"), "--chunk-size", "64K"])
        == 0
    )
    (end,) = (entry.chunks[0].member for _, entry in listed(target) if entry.name == PREFETCH_LANDMARK)
    with LyingRegistry(target) as registry:
        with lazyfs.mounted(registry.image + ":v1", "--background", "wait") as root:
            ranges = registry.ranges[2:]  # behind those for the TOCs
            (first,) = [entry.chunks[0].member for _, entry in listed(target) if entry.name == large_file(5).encode()]
            assert ranges[0] == f"bytes={first}-{end - 1}"
            assert not small.wrong_files(root)
            assert registry.ranges[2:] == ranges


def test_reader_goes_before_the_background(lazyfs: Lazyfs, small: SmallImage) -> None:
    """With the background on, files are right at once, and in the end all is here."""
    with LyingRegistry(small.layout) as registry, lazyfs.mounted(registry.image + ":v1") as root:
        assert not small.wrong_files(root)
        assert not lazyfs.json("status", root)["errors"]
