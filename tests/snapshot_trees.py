"""Snapshots as containerd uses them: mounted as it mounts them, changed, and looked at."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.commands import run
from tests.snapshots_client import Mount
from tests.tree import compare, walk

PAGE = 4096
_ROOM = 512
"""containerd's reserve in the page that all options of a mount have to fit into."""

Change = Callable[[Path], None]
"""To be made in the root of a tree."""


@contextmanager
def mounted(mounts: Sequence[Mount], folder: Path) -> Iterator[Path]:
    """A new directory in `folder`, inside the block with `mounts` on it. Source: containerd, core/mount/mount_linux.go."""
    at = Path(tempfile.mkdtemp(dir=folder))
    done = 0
    try:
        for mount in mounts:
            _mount(mount, at)
            done += 1
        yield at
    finally:
        for _ in range(done):
            run("umount", at)
    at.rmdir()


def _mount(mount: Mount, at: Path) -> None:
    options, folder = list(mount.options), None
    if mount.type == "overlay" and sum(map(len, options)) >= PAGE - _ROOM:
        lower = mount.option("lowerdir").split(":")
        folder = os.path.commonpath(lower)
        options.remove(f"lowerdir={mount.option('lowerdir')}")
        options.append("lowerdir=" + ":".join(os.path.relpath(path, folder) for path in lower))
    assert sum(map(len, options)) + len(options) <= PAGE
    run("mount", "--types", mount.type, "--options", ",".join(options), mount.source, at, cwd=folder)


def directory(name: str, mode: int = 0o755) -> Change:
    def make(root: Path) -> None:
        (root / name).mkdir()
        (root / name).chmod(mode)

    return make


def file(name: str, data: bytes = b"", mode: int = 0o644) -> Change:
    """Made, or overwritten."""

    def write(root: Path) -> None:
        (root / name).write_bytes(data)
        (root / name).chmod(mode)

    return write


def owner(name: str, number: int) -> Change:
    return lambda root: os.chown(root / name, number, number)


def gone(name: str) -> Change:
    def remove(root: Path) -> None:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    return remove


def renamed(name: str, other: str) -> Change:
    def rename(root: Path) -> None:
        (root / name).rename(root / other)

    return rename


def linked(name: str, other: str) -> Change:
    return lambda root: os.link(root / name, root / other)


def all_of(*changes: Change) -> Change:
    def make(root: Path) -> None:
        for change in changes:
            change(root)

    return make


def assert_same(left: Path, right: Path) -> None:
    """Two trees hold the same, made at whatever times."""
    records = walk(left)
    differences = compare(records, walk(right), untimed=records.keys())
    assert not differences, "\n".join(map(str, differences[:20]))
