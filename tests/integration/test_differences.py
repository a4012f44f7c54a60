"""Where a mount differs from a full pull: what lazyfs/docs/SEMANTICS.md says of it is so."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.commands import Lazyfs
from tests.lazyfsd import moments
from tests.small_image import SmallImage, build_of

pytestmark = [pytest.mark.fuse, pytest.mark.root]

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_FIEMAP: Final = 0xC020660B
FIEMAP: Final = struct.pack("=QQIIII", 0, 2**64 - 1, 0, 0, 0, 0)
NAMES: Final = 500
NO_FLAGS: Final = {errno.ENOTTY, errno.EOPNOTSUPP}
"""lsattr says "Operation not supported" of both."""


@pytest.fixture(scope="module")
def image(session_folder: Path) -> SmallImage:
    """A file of more than 4 MiB, which comes through the gate, a small one, and a directory of many names."""
    files = {"large": os.urandom(5 << 20), "small": b"small" * 1000, **{f"many/{number:040}": b"" for number in range(NAMES)}}
    return build_of(session_folder / "differences", files)


def outcome(path: Path, call: Callable[[int], object]) -> int:
    """0, or the errno with which a call on an open file fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call(descriptor)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(descriptor)
    return 0


def copied(source: Path, target: Path) -> int:
    """What copy_file_range says, between files of one file system."""
    with target.open("wb") as file:
        return outcome(source, lambda descriptor: os.copy_file_range(descriptor, file.fileno(), 4096))


def mapped(path: Path) -> int:
    return outcome(path, lambda descriptor: fcntl.ioctl(descriptor, FS_IOC_FIEMAP, FIEMAP))


def flags(path: Path) -> int:
    return outcome(path, lambda descriptor: fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8)))


def test_natively(lazyfs: Lazyfs, image: SmallImage, tmp_path: Path) -> None:
    """copy_file_range and FIEMAP of a file that came through the gate, until the overlay has looked again; flags; directories' sizes."""
    with lazyfs.mounted(image.converted, "--background", "off", "--rw", tmp_path / "upper", mode="native") as root:
        assert copied(root / "small", root / "copy") == 0
        with (root / "large").open("rb") as held:
            assert copied(root / "large", root / "copy") == errno.EXDEV
            assert mapped(root / "large") == errno.EOPNOTSUPP
            assert len(held.read()) == 5 << 20  # now it is whole, and still held
            assert copied(root / "large", root / "copy") == errno.EXDEV
        for _ in moments():
            if copied(root / "large", root / "copy") == 0:
                break
        assert mapped(root / "large") == 0
        assert {flags(root / "small"), flags(root / "many")} <= NO_FLAGS
        assert (root / "many").stat().st_size == 26_240


def test_portably(lazyfs: Lazyfs, image: SmallImage) -> None:
    """Neither flags nor a map of extents; directories of one size."""
    with lazyfs.mounted(image.converted, "--background", "off") as root:
        for name in ("large", "small"):
            assert flags(root / name) in NO_FLAGS and mapped(root / name) == errno.EOPNOTSUPP
        assert (root / "many").stat().st_size == (root).stat().st_size == 4096
