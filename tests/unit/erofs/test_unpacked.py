"""Layers that somebody else has unpacked, in a stack with images of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.erofs.reader import inherited_from
from lazyfs.errors import StoreUnusable
from lazyfs.format.entry import Entry
from tests.metadata_images import image_of

pytestmark = pytest.mark.root


def image(path: Path, *entries: Entry) -> Path:
    path.write_bytes(image_of(entries))
    return path


def folder(path: Path, *names: str) -> Path:
    for name in ("", *names):
        (path / name).mkdir(mode=0o755, parents=True)
    return path


def test_the_uppermost_directory_is_shown(tmp_path: Path) -> None:
    """Whatever kind of layer it is in, and with all its attributes."""
    low = image(tmp_path / "low", Entry(b"a", "dir", uid=1), Entry(b"b", "dir", uid=2), Entry(b"b/c", "dir", uid=3))
    middle = folder(tmp_path / "middle", "b")
    os.chown(middle / "b", 7, 8)
    os.chmod(middle / "b", 0o2711)
    os.utime(middle / "b", ns=(0, -5))
    os.setxattr(middle / "b", "user.x", b"1")
    os.setxattr(middle / "b", "trusted.overlay.redirect", b"/elsewhere")
    high = image(tmp_path / "high", Entry(b"a", "dir", uid=9))
    shown = inherited_from([low, middle, high], [b"a", b"b", b"b/c", b"b/c/d", b"x"])
    assert shown == {
        b"a": Entry(b"a", "dir", uid=9),
        b"b": Entry(b"b", "dir", 0o2711, 7, 8, -5, xattrs=((b"user.x", b"1"),)),
        b"b/c": Entry(b"b/c", "dir", uid=3),
    }


@pytest.mark.parametrize("how", ["opaque", "opaque above", "whiteout", "file", "link"])
def test_what_is_covered_is_not_shown(tmp_path: Path, how: str) -> None:
    """An opaque directory, a whiteout, a file, or a link that leads to a directory stand before the layers below."""
    low = image(tmp_path / "low", Entry(b"d", "dir"), Entry(b"d/e", "dir"))
    high = folder(tmp_path / "high", *(["d"] if how.startswith("opaque") else []))
    if how == "opaque":
        os.setxattr(high / "d", "trusted.overlay.opaque", b"y")
    elif how == "opaque above":
        os.setxattr(high, "trusted.overlay.opaque", b"y")
    elif how == "whiteout":
        os.mknod(high / "d", 0o20000, 0)
    elif how == "file":
        (high / "d").touch()
    else:
        (high / "d").symlink_to("/usr")
    assert b"d/e" not in inherited_from([low, high], [b"d/e", b"d/share"])
    assert b"d/share" not in inherited_from([low, high], [b"d/share"])


def test_a_layer_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(StoreUnusable, match="gone"):
        inherited_from([tmp_path / "gone"], [b""])
