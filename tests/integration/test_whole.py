"""Images that nobody has converted: mounted all the same, after each layer has been fetched whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bad.oci import Oci, named, tar_of
from tests.commands import Lazyfs, run
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.small_image import SmallImage
from tests.tree import Record, compare, walk
from tests.unit.registry.scripted import Reply, Request

pytestmark = pytest.mark.fuse

MODES = ["portable", pytest.param("native", marks=pytest.mark.root)]
Named = Callable[[str], str]


def read(path: Path, mode: str) -> bytes:
    """All of a file. Past the page cache where that is possible: natively nothing of it is there before the first read."""
    if mode == "native":
        return path.read_bytes()
    with open(os.open(path, os.O_RDONLY | os.O_DIRECT), "rb", buffering=0) as file:
        return file.readall()


@pytest.mark.images
@pytest.mark.registry
@pytest.mark.umoci
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["edge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("debian", "python"))])
def test_unconverted_tree_is_the_unpacked_one(
    name: str, mode: str, lazyfs: Lazyfs, originals: Named, unpacked: Callable[[str], dict[bytes, Record]]
) -> None:
    """Every entry equals, and nothing was fetched but the layers."""
    with lazyfs.mounted(originals(name), mode=mode) as root:
        assert not compare(unpacked(name), walk(root))
        status = lazyfs.json("status", root)
        assert status["complete"] and status["requests"] == 0
        assert all("names no TOC digest" in layer["reason"] for layer in status["layer_states"])


@pytest.mark.parametrize("mode", MODES)
def test_registry_is_needed_once(small: SmallImage, mode: str, lazyfs: Lazyfs) -> None:
    """The second mount, by digest, needs no registry: names and files are here."""
    with LyingRegistry(small.original) as registry:
        with lazyfs.mounted(f"{registry.image}:v1", mode=mode) as root:
            assert not small.wrong_files(root)
            image = lazyfs.json("status", root)["image"]
        asked = len(registry.server.requests)
        with lazyfs.mounted(image, mode=mode) as root:
            assert len(registry.server.requests) == asked
    with lazyfs.mounted(image, mode=mode) as root:
        assert not small.wrong_files(root)


def test_each_layer_is_reported_in_a_line(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Which, how many bytes, and the command that would have saved them; once."""
    image = f"oci:{small.original}:v1"
    for lines in (2, 0):
        directory = tmp_path / f"mount-{lines}"
        directory.mkdir()
        output = lazyfs.run("mount", image, directory, "--store", lazyfs.store, "--mode", "portable").stderr.decode()
        lazyfs.run("umount", directory)
        assert len(output.splitlines()) == lines
        for line in output.splitlines():
            assert "are fetched whole" in line and f"`lazyfs convert oci:{small.original}@sha256:" in line


@pytest.mark.parametrize("mode", MODES)
def test_removed_objects_are_fetched_again(small: SmallImage, mode: str, lazyfs: Lazyfs) -> None:
    """While it is mounted: every byte is right, and the layers have come once more."""
    with LyingRegistry(small.original) as registry:
        with lazyfs.mounted(f"{registry.image}:v1", "--background", "off", mode=mode) as root:
            before = len(registry.ranges)
            for folder in ("objects", "arrived"):
                for path in (lazyfs.store / folder).iterdir():
                    path.unlink()
            for name, data in small.files.items():
                assert read(root / name, mode) == data
            assert len(registry.ranges) <= 2 * before
            status = lazyfs.json("status", root)
            assert status["complete"] and 1 <= status["requests"] <= 2


@pytest.mark.parametrize("mode", MODES)
def test_lazy_only_refuses_it(small: SmallImage, mode: str, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """In one line, with the conversion that would help; nothing is fetched."""
    directory = tmp_path / "mount"
    directory.mkdir()
    with LyingRegistry(small.original) as registry:
        command = ["mount", f"{registry.image}:v1", directory, "--store", lazyfs.store, "--mode", mode, "--lazy-only"]
        output = lazyfs.run(*command, code=3).stderr.decode()
        assert not registry.ranges
    assert "(layer 1 of 2)" in output and f"lazyfs convert {registry.image}" in output and output.count("\n") == 1
    assert not directory.is_mount()


def test_two_mounts_at_once_fetch_a_layer_once(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Two processes over one store: one fetches, the other waits for its turn and finds everything."""
    directories = [tmp_path / name for name in "ab"]

    def mount(directory: Path) -> None:
        lazyfs.run("mount", f"{registry.image}:v1", directory, "--store", lazyfs.store, "--mode", "portable")

    with LyingRegistry(small.original) as registry, ExitStack() as mounts:
        for directory in directories:
            directory.mkdir()
            mounts.callback(lazyfs.run, "umount", directory, code=None)
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(mount, directories))
        for directory in directories:
            assert not small.wrong_files(directory)
            assert lazyfs.json("status", directory)["requests"] == 0
        assert len(registry.ranges) == 2  # one a layer


@pytest.mark.root
def test_disk_without_room_for_a_layer(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """The mount fails with the store's own words, and gives back the room that the layer took on its way."""
    directory, disk = tmp_path / "mount", tmp_path / "disk"
    for path in (directory, disk):
        path.mkdir()
    image = f"oci:{small.original}:v1"
    run("mount", "-t", "tmpfs", "-o", "size=5m", "lazyfs-test", disk)
    try:
        command = ["mount", image, directory, "--store", disk / "store", "--mode", "portable"]
        output = lazyfs.run(*command, code=5).stderr.decode()
        assert "No space left on device" in output and "--store" in output
        assert not directory.is_mount()
        assert not any((disk / "store" / "tmp").iterdir())
        run("mount", "-o", "remount,size=50m", disk)
        lazyfs.run(*command)
        assert not small.wrong_files(directory)
        lazyfs.run("umount", directory)
    finally:
        run("umount", disk)


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
def test_layer_that_reaches_for_another_image(mode: str, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """A tar with overlayfs's own xattrs, and a file named like an object, shows its own bytes and hides nothing of the layer below."""
    secret = b"what another image holds"
    victim, thief = Oci(tmp_path / "victim"), Oci(tmp_path / "thief")
    victim.image(victim.plain(tar_of((named("secret"), secret))))
    name = f"sha256-{hashlib.sha256(secret).hexdigest()}-{len(secret)}"
    steal, folder = named("steal"), named("folder", tarfile.DIRTYPE)
    steal.pax_headers = {"SCHILY.xattr.trusted.overlay.metacopy": "", "SCHILY.xattr.trusted.overlay.redirect": f"/{name}"}
    folder.pax_headers = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/other"}
    lower = thief.plain(tar_of((named("folder/kept"), b"kept"), (named("other/file"), b"other")))
    thief.image(lower, thief.plain(tar_of((steal, bytes(len(secret))), (named(f"opt/{name}"), b"planted"), folder)))
    with lazyfs.mounted(f"oci:{thief.path}:v1", mode=mode) as root, lazyfs.mounted(f"oci:{victim.path}:v1", mode=mode) as other:
        assert (root / "steal").read_bytes() == bytes(len(secret))
        assert (root / "opt" / name).read_bytes() == b"planted"
        assert os.listdir(root / "folder") == ["kept"]
        assert (other / "secret").read_bytes() == secret
    assert (lazyfs.store / "objects" / name).read_bytes() == secret


def test_killed_while_a_layer_is_fetched(small: SmallImage, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """kill -9 in the middle leaves what has come of the blob, and the next mount asks for the rest."""
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
            for _ in moments():
                parts = (lazyfs.store / "partial").glob("blob-*")
                if kept := max((part.stat().st_size for part in parts), default=0) >> 20:
                    break
            assert kept
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        registry.lie = None
        sizes = [part.stat().st_size for part in (lazyfs.store / "partial").glob("blob-*")]
        asked = len(registry.ranges)
        with lazyfs.mounted(f"{registry.image}:v1") as root:
            assert not small.wrong_files(root)
        assert f"bytes={max(sizes)}-" in " ".join(registry.ranges[asked:])
    assert not list((lazyfs.store / "partial").iterdir())
