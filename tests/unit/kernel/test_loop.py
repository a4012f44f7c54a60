"""Loop devices."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from lazyfs.kernel import loop
from lazyfs.kernel.loop import loop_device
from tests.commands import run

pytestmark = pytest.mark.root


def backing_files() -> list[str]:
    return run("losetup", "--list", "--noheadings", "--output", "BACK-FILE").stdout.decode().splitlines()


def test_a_device_shows_its_file_and_goes(tmp_path: Path) -> None:
    """It has the file's bytes, cannot be written, and is free after the block, also after an error."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(8192))
    with path.open("rb") as file:
        with pytest.raises(KeyError), loop_device(file.fileno(), b"n" * 100) as device:
            assert Path(device).read_bytes() == path.read_bytes()
            with pytest.raises(PermissionError), Path(device).open("r+b") as written:
                written.write(b"x")
            assert str(path) in backing_files()
            raise KeyError
    assert str(path) not in backing_files()


def test_somebody_is_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free device that somebody else takes first is passed over; when that never ends, it is an error."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    real, busy = fcntl.ioctl, [2]

    def ioctl(fd: int, request: int, *more: bytes) -> int:
        if request == loop._LOOP_CONFIGURE and busy[0]:
            busy[0] -= 1
            raise OSError(errno.EBUSY, "taken")
        return real(fd, request, *more)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with path.open("rb") as file:
        with loop_device(file.fileno(), b"name"):
            assert str(path) in backing_files()
        busy[0] = 1000
        with pytest.raises(OSError, match="other processes"), loop_device(file.fileno(), b"name"):
            pass
    assert str(path) not in backing_files()


def test_no_loop_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has none says which file is missing."""
    monkeypatch.setattr(loop, "_CONTROL", str(tmp_path / "loop-control"))
    with pytest.raises(FileNotFoundError, match="loop-control"), loop_device(0, b"name"):
        pass
