"""Reading a file of a root file system whose author is hostile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.bundle.root import read_in_root
from lazyfs.errors import InvalidInput, LocalError

LIMIT = 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with /etc/passwd, beside a file outside that must not be reached."""
    (tmp_path / "secret").write_bytes(b"outside")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/real").write_bytes(b"inside")
    return root


@pytest.mark.parametrize(
    "target",
    ["real", "/etc/real", "../etc/real", "../../../../etc/real", "./../etc/./real", "/../../etc//real", "/proc/../etc/real"],
)
def test_links_stay_inside(root: Path, target: str) -> None:
    """An absolute link starts at the image's root, and `..` ends there."""
    (root / "proc").mkdir()
    (root / "etc/passwd").symlink_to(target)
    assert read_in_root(root, "/etc/passwd", LIMIT) == b"inside"


@pytest.mark.parametrize(
    "target", ["../../secret", "/../secret", "{outside}/secret", "/up/../../secret", "/gone", "passwd", "/etc/real/"]
)
def test_links_that_lead_out_lead_nowhere(root: Path, target: str) -> None:
    """What is outside is not there, by whatever link; a circle and a dangling link are nothing either."""
    (root / "up").symlink_to("..")
    (root / "etc/passwd").symlink_to(target.format(outside=root.parent))
    found = read_in_root(root, "/etc/passwd", LIMIT)
    assert found == (b"inside" if target == "/etc/real/" else None)


def test_directories_that_are_links(root: Path) -> None:
    """A link in the middle of the way is walked as one at its end."""
    (root / "etc").rename(root / "config")
    (root / "etc").symlink_to("/there")
    (root / "there").symlink_to("../config")
    assert read_in_root(root, "/etc/real", LIMIT) == b"inside"


def test_what_is_no_file_is_not_opened(root: Path) -> None:
    """A FIFO would block for ever, a directory has no lines: neither is there."""
    os.mkfifo(root / "etc/passwd")
    (root / "etc/group").mkdir()
    assert read_in_root(root, "/etc/passwd", LIMIT) is None
    assert read_in_root(root, "/etc/group", LIMIT) is None
    assert read_in_root(root, "/etc/real/below", LIMIT) is None


def test_size_is_bounded(root: Path) -> None:
    """A file of a terabyte is refused without reading it."""
    os.truncate(root / "etc/real", 1 << 40)
    with pytest.raises(InvalidInput, match="more than 100 bytes"):
        read_in_root(root, "/etc/real", LIMIT)
    os.truncate(root / "etc/real", LIMIT)
    assert read_in_root(root, "/etc/real", LIMIT) == b"inside".ljust(LIMIT, b"\0")


def test_root_that_is_not_there(root: Path) -> None:
    """Nothing at all is a missing file; a root that cannot be used is an error."""
    assert read_in_root(root / "gone", "/etc/passwd", LIMIT) is None
    (root / "etc/long").symlink_to("x" * 300)
    with pytest.raises(LocalError, match="cannot look up /etc/long"):
        read_in_root(root, "/etc/long", LIMIT)


def test_descriptors_are_closed(root: Path) -> None:
    """Whatever the way, none is left open."""
    (root / "etc/passwd").symlink_to("../etc/../etc/real")
    (root / "etc/circle").symlink_to("circle")
    before = os.listdir("/proc/self/fd")
    for name in ("/etc/passwd", "/etc/circle", "/etc/gone", "/etc"):
        read_in_root(root, name, LIMIT)
    assert os.listdir("/proc/self/fd") == before
