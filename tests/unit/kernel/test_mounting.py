"""Mounts by file descriptors. What takes an image is in tests/integration/test_native_stack.py."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from lazyfs.kernel.mountinfo import mounted_at, mounts
from lazyfs.kernel.mounting import NO_EXEC, READ_ONLY, Context, attach, reconfigure, unmount
from lazyfs.kernel.namespace import in_own_namespace

pytestmark = pytest.mark.root


def of_this_test() -> list[Path]:
    return [mount.path for mount in mounts() if mount.source == "a test"]


def mount_tmpfs(at: Path, attributes: int = 0) -> None:
    with Context("tmpfs") as context:
        context.set("source", "a test")
        context.set("size", "64k")
        context.create()
        mount = context.mount(attributes)
    attach(mount, at)
    os.close(mount)


def test_mount_and_unmount(tmp_path: Path) -> None:
    """A file system is mounted with its source, its options and its attributes, reconfigured, and taken away again."""
    mount_tmpfs(tmp_path, NO_EXEC)
    try:
        mounted = mounted_at(tmp_path)
        assert mounted is not None
        assert (mounted.kind, mounted.source) == ("tmpfs", "a test")
        assert "size=64k" in mounted.options
        assert os.statvfs(tmp_path).f_flag & os.ST_NOEXEC
        (tmp_path / "file").write_text("written")
        reconfigure(tmp_path, read_only=False)
        assert (tmp_path / "file").read_text() == "written"
    finally:
        unmount(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_has_no_place_goes_with_its_descriptor(tmp_path: Path) -> None:
    """A mount that was never attached is nowhere, and cannot be attached once its descriptor is closed."""
    with Context("tmpfs") as context:
        context.set("source", "a test")
        context.create()
        mount = context.mount(READ_ONLY)
        assert not of_this_test()
        os.close(mount)
    with pytest.raises(OSError) as refused:
        attach(mount, tmp_path)
    assert refused.value.errno == errno.EBADF


def test_refusals_are_explained(tmp_path: Path) -> None:
    """An error names what was refused, and holds what the kernel wrote about it."""
    with pytest.raises(OSError, match="nosuchfs") as unknown:
        Context("nosuchfs")
    assert unknown.value.errno == errno.ENODEV
    with Context("tmpfs") as context, pytest.raises(OSError, match=r"(?s)colour.*tmpfs colour=blue") as refused:
        context.set("colour", "blue")
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(OSError, match=str(tmp_path)):
        unmount(tmp_path)
    with pytest.raises(OSError, match=str(tmp_path)):
        reconfigure(tmp_path, read_only=True)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A symbolic link at the mount point is not followed."""
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    with pytest.raises(OSError):
        mount_tmpfs(tmp_path / "link")
    mount_tmpfs(tmp_path / "place")
    try:
        with pytest.raises(OSError):
            unmount(tmp_path / "link")
        with pytest.raises(OSError):
            reconfigure(tmp_path / "link", read_only=False)
        assert mounted_at(tmp_path / "place")
    finally:
        unmount(tmp_path / "place")


def test_own_namespace(tmp_path: Path) -> None:
    """Mounts in it are invisible to others and gone after it; what is raised in it comes out; the caller stays where it was."""
    seen: list[bool] = []
    namespace = Path("/proc/thread-self/ns/mnt").readlink()

    def mount() -> str:
        mount_tmpfs(tmp_path)
        (tmp_path / "inside").touch()
        other = threading.Thread(target=lambda: seen.append((tmp_path / "inside").exists()))
        other.start()
        other.join()
        return "done"

    def fail() -> None:
        mount_tmpfs(tmp_path)
        raise KeyError("of the function")

    assert in_own_namespace(mount) == "done"
    with pytest.raises(KeyError, match="of the function"):
        in_own_namespace(fail)
    assert not of_this_test()
    assert not list(tmp_path.iterdir())
    assert Path("/proc/thread-self/ns/mnt").readlink() == namespace
