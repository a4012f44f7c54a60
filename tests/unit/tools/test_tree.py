"""The comparison of trees tells everything apart that the promise names: else every tree test would pass for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tree import compare, walk


def make(root: Path) -> Path:
    """A small tree with one entry of each kind."""
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"content")
    (root / "dir" / "other").write_bytes(b"content")
    os.link(root / "dir" / "other", root / "dir" / "twin")
    (root / "link").symlink_to("dir/file")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"name-\xff")).touch()
    for path in sorted(root.rglob("*")):
        os.utime(path, ns=(0, 1_500_000_000_123_456_789), follow_symlinks=False)
    return root


CHANGES: dict[str, tuple[Callable[[Path], object], set[tuple[str, str]]]] = {
    "nothing": (lambda root: None, set()),
    "an access time": (lambda root: os.utime(root / "dir/file", ns=(7, 1_500_000_000_123_456_789)), set()),
    "one nanosecond": (lambda root: os.utime(root / "dir/file", ns=(0, 1_500_000_000_123_456_788)), {("dir/file", "mtime_ns")}),
    "a link's nanosecond": (
        lambda root: os.utime(root / "link", ns=(0, 1_500_000_000_123_456_788), follow_symlinks=False),
        {("link", "mtime_ns")},
    ),
    "a mode": (lambda root: (root / "dir/file").chmod(0o4755), {("dir/file", "mode")}),
    "a type": (
        lambda root: os.rename(root / "dir/twin", root / "fifo"),
        {("fifo", "type"), ("fifo", "nlink"), ("fifo", "size"), ("fifo", "sha256"), ("dir/twin", "exists")},
    ),
    "a byte": (lambda root: (root / "dir/file").write_bytes(b"Content"), {("dir/file", "sha256")}),
    "a hard link": (lambda root: os.link(root / "dir/file", root / "more"), {("dir/file", "nlink"), ("more", "exists")}),
    "a missing name": (lambda root: (root / os.fsdecode(b"name-\xff")).unlink(), {("name-\\xff", "exists")}),
    "an xattr": (lambda root: os.setxattr(root / "dir", b"user.x", b"\0"), {("dir", "xattrs")}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_compare_finds(change: str, tmp_path: Path) -> None:
    """Each change is found, and nothing else is; times that the change touches in passing are put aside."""
    left, right = make(tmp_path / "left"), make(tmp_path / "right")
    act, expected = CHANGES[change]
    act(right)
    aside = {b".", b"dir"} | ({b"dir/file"} if change == "a byte" else set())
    assert {(difference.path, difference.field) for difference in compare(walk(left), walk(right), untimed=aside)} == expected


def test_compare_ignores_what_it_is_asked_to(tmp_path: Path) -> None:
    """An ignored path counts with all below it, and with no neighbour of a longer name."""
    left, right = make(tmp_path / "left"), make(tmp_path / "right")
    (right / "dir" / "new").touch()
    (right / "dirt").touch()
    assert {difference.path for difference in compare(walk(left), walk(right), ignore=[b"dir"])} == {"dirt"}


def test_walk_goes_beyond_path_max(tmp_path: Path) -> None:
    """A path longer than the kernel takes in one call is walked like any other."""
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=folder)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)
    deepest = b"/".join([b"d" * 200] * 30 + [b"leaf"])
    assert walk(tmp_path)[deepest].type == "reg"


def test_command_line_reports(tmp_path: Path) -> None:
    """`python -m tests.tree` ends with 0 on equal trees, and with 1 and the difference on others."""
    left, right = make(tmp_path / "left"), make(tmp_path / "right")
    command = [sys.executable, "-m", "tests.tree", str(left), str(right)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    (right / "dir" / "file").chmod(0o600)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "dir/file: mode is 420 on the left, 384 on the right" in done.stdout
