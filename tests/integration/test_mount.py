"""The life of a mount: how it begins, what is said of it, and all the ways in which it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.mount.logs import log_file
from lazyfs.mount.table import find_mount
from tests.commands import Lazyfs
from tests.docker_registry import Registry
from tests.small_image import SmallImage, large_file

pytestmark = pytest.mark.fuse

PATIENCE_S = 60.0


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """A descriptor of a process, which outlives its number."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ended(descriptor: int) -> bool:
    """Wait for the end of a watched process; whether it came."""
    return bool(select.select([descriptor], [], [], PATIENCE_S)[0])


@contextmanager
def holding(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose working directory is in a mount."""
    with subprocess.Popen(["sleep", "1000"], cwd=directory) as process:  # returns when that is what it is
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A place to mount at."""
    path = tmp_path / "directory"
    path.mkdir()
    return path


def test_mount_returns_when_it_answers(lazyfs: Lazyfs, small: SmallImage, directory: Path) -> None:
    """Behind `lazyfs mount` the tree is there, and a process of its own serves it."""
    output = lazyfs.json("mount", small.converted, directory, "--store", lazyfs.store, "--mode", "portable")
    assert (directory / "empty").read_bytes() == b""
    assert output == {
        "image": f"oci:{small.layout}@{small.digest}",
        "directory": str(directory),
        "pid": output["pid"],
        "mode": "portable",
    }
    assert os.getsid(output["pid"]) == output["pid"]
    with watched(output["pid"]) as process:
        lazyfs.run("umount", directory)
        assert not directory.is_mount()
        assert ended(process)


def test_mount_point_must_be_a_free_directory(lazyfs: Lazyfs, small: SmallImage, tmp_path: Path) -> None:
    """What is not a directory, and what is a mount already, is named and left."""
    file = tmp_path / "file"
    file.touch()
    for place in (file, tmp_path / "gone"):
        output = lazyfs.run("mount", small.converted, place, "--store", lazyfs.store, "--mode", "portable", code=5).stderr
        assert f"{place} is not a directory" in output.decode()
    assert f"{tmp_path} is not a lazyfs mount" in lazyfs.run("umount", tmp_path, code=5).stderr.decode()
    assert f"{tmp_path} is not a lazyfs mount" in lazyfs.run("status", tmp_path, code=5).stderr.decode()
    with lazyfs.mounted(small.converted) as root:
        output = lazyfs.run("mount", small.converted, root, "--store", lazyfs.store, "--mode", "portable", code=5).stderr
        assert f"{root} is a lazyfs mount already. Unmount it first: lazyfs umount {root}" in output.decode()
        assert (root / "empty").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground(number: signal.Signals, lazyfs: Lazyfs, small: SmallImage, directory: Path) -> None:
    """It stays, and Ctrl-C unmounts: that is not a failure."""
    command = [
        sys.executable,
        "-m",
        "lazyfs",
        "mount",
        small.converted,
        directory,
        "--store",
        lazyfs.store,
        "--mode",
        "portable",
        "--foreground",
    ]
    process = subprocess.Popen(command, env=lazyfs.environment, stderr=subprocess.PIPE)
    end = time.monotonic() + PATIENCE_S
    while not directory.is_mount() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert (directory / "empty").exists()
    process.send_signal(number)
    _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert b"Traceback" not in output
    assert not directory.is_mount()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_unmounts(number: signal.Signals, lazyfs: Lazyfs, small: SmallImage) -> None:
    """The mount goes, its process ends, and nothing is complained about."""
    with lazyfs.mounted(small.converted) as root:
        pid = lazyfs.json("status", root)["pid"]
        with watched(pid) as process:
            os.kill(pid, number)
            assert ended(process)
        assert find_mount(root) is None
        assert " WARNING " not in log_file(lazyfs.store, root).read_text()


def test_signal_to_a_busy_mount_detaches_it(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A process that is told to end ends, and its log names who held the mount."""
    with lazyfs.mounted(small.converted) as root, holding(root) as holder:
        pid = lazyfs.json("status", root)["pid"]
        with watched(pid) as process:
            os.kill(pid, signal.SIGTERM)
            assert ended(process)
        assert find_mount(root) is None
        assert f"sleep ({holder.pid})" in log_file(lazyfs.store, root).read_text()


def test_busy_mount_is_left_and_its_holder_named(lazyfs: Lazyfs, small: SmallImage) -> None:
    """Whoever holds it, by its working directory or an open file, is named, and goes on unharmed."""
    with lazyfs.mounted(small.converted) as root:
        with holding(root / "bin") as holder:
            output = lazyfs.run("umount", root, code=5).stderr.decode()
            assert f"{root} is busy: held by sleep ({holder.pid})" in output and "--lazy" in output
        with (root / "first").open("rb") as file:
            output = lazyfs.run("umount", root, code=5).stderr.decode()
            assert f"({os.getpid()})" in output
            assert file.read() == small.files["first"]
        assert root.is_mount()


def test_lazy_umount_detaches(lazyfs: Lazyfs, small: SmallImage) -> None:
    """It vanishes at once; who is inside reads on; the process ends with the last one."""
    with lazyfs.mounted(small.converted, "--background", "off") as root:
        pid = lazyfs.json("status", root)["pid"]
        descriptor = os.open(root, os.O_RDONLY)
        with watched(pid) as process:
            lazyfs.run("umount", "--lazy", root)
            assert find_mount(root) is None and not list(root.iterdir())
            with open(os.open(large_file(1), os.O_RDONLY, dir_fd=descriptor), "rb") as file:
                assert file.read() == small.files[large_file(1)]
            os.close(descriptor)
            assert ended(process)


def test_mount_that_hangs_can_be_taken_away(lazyfs: Lazyfs, small: SmallImage) -> None:
    """A process that answers nothing does not hold whoever unmounts; when it wakes up, it ends."""
    with lazyfs.mounted(small.converted) as root:
        pid = lazyfs.json("status", root)["pid"]
        with watched(pid) as process:
            os.kill(pid, signal.SIGSTOP)
            try:
                lazyfs.run("umount", "--lazy", root)
                assert find_mount(root) is None
            finally:
                os.kill(pid, signal.SIGCONT)
            assert ended(process)


def test_dead_mount(lazyfs: Lazyfs, small: SmallImage) -> None:
    """After kill -9 all commands say what is the matter and what to do, and doing it heals."""
    with lazyfs.mounted(small.converted) as root:
        pid = lazyfs.json("status", root)["pid"]
        with watched(pid) as process:
            os.kill(pid, signal.SIGKILL)
            assert ended(process)
        done = lazyfs.run("status", root, code=5)
        assert f"the mount at {root} does not answer" in done.stdout.decode() and f"lazyfs umount {root}" in done.stdout.decode()
        assert "does not answer" in lazyfs.json("status", root, code=5)["error"]
        output = lazyfs.run(
            "mount", small.converted, root, "--store", lazyfs.store, "--mode", "portable", "--mode", "portable", code=5
        ).stderr.decode()
        assert f"lazyfs umount {root}" in output
        lazyfs.run("umount", root)
        lazyfs.run("mount", small.converted, root, "--store", lazyfs.store, "--mode", "portable")
        assert (root / "first").read_bytes() == small.files["first"]


def test_status(lazyfs: Lazyfs, small: SmallImage) -> None:
    """What is mounted, from what, and what of it is here: in words and as JSON, one mount or all."""
    with lazyfs.mounted(small.converted, "--background", "wait") as whole:
        with lazyfs.mounted(small.converted, "--background", "off", "--store", lazyfs.store.parent / "other") as part:
            one, other = (lazyfs.json("status", root) for root in (whole, part))
            assert one["complete"] and not one["missing_bytes"] and one["background"] == "wait"
            assert not other["complete"] and other["missing_bytes"] >= sum(map(len, small.files.values())) - 40
            assert other["image"] == f"oci:{small.layout}@{small.digest}" and other["directory"] == str(part)
            assert other["layers"] == 2 and other["received_bytes"] == 0 and other["errors"] == {}
            said = lazyfs.run("status", code=None).stdout.decode()
            assert f"{whole}  oci:" in said and f"{part}  oci:" in said and "complete: needs no registry" in said
            lines = lazyfs.run("status", "--json", code=None).stdout.decode().splitlines()
            assert sum(f'"directory":"{root}"' in line for root in (whole, part) for line in lines) == 2


def test_mounting_again_needs_no_registry(lazyfs: Lazyfs, registry: Registry, small: SmallImage) -> None:
    """A digest that was mounted before is enough; a tag, which may have moved, is asked for, and the digest it last was is named."""
    tag = registry.push(small.converted, "small:v1")
    digest = f"{tag[:-3]}@{small.digest}"
    with lazyfs.mounted(digest, "--background", "off") as root:
        assert (root / "first").read_bytes() == small.files["first"]
    with lazyfs.mounted(tag):
        pass
    registry.stop()
    with lazyfs.mounted(digest, "--background", "off") as root:
        assert (root / "first").read_bytes() == small.files["first"]
        output = lazyfs.run("mount", tag, root.parent, "--store", lazyfs.store, "--mode", "portable", code=4).stderr.decode()
        assert registry.address in output and f"It was last seen as {digest}" in output
