"""The daemon's end of the descriptor store, in systemd's words."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.daemon.fdstore import FIRST, FdStore
from tests.conftest import LogWatch


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    """Where a keeper would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        yield listening


def test_passed_descriptors_have_names() -> None:
    """LISTEN_FDS of them from 3 on; the variables are gone afterwards, and so is inheritance."""
    environment = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": "control:fuse",
        "NOTIFY_SOCKET": "@x",
        "HOME": "/",
    }
    saved = [_parked(number) for number in (FIRST, FIRST + 1)]
    try:
        for place in (FIRST, FIRST + 1):
            os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), place, inheritable=True)
        fds = FdStore.from_environment(environment)
        assert (fds.get("control"), fds.get("fuse"), fds.get("other")) == (FIRST, FIRST + 1, None)
        assert not os.get_inheritable(FIRST)
        assert environment == {"HOME": "/"}
    finally:
        for place, parked in zip((FIRST, FIRST + 1), saved, strict=True):
            _unpark(place, parked)


def _parked(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _unpark(number: int, parked: int | None) -> None:
    os.close(number)
    if parked is not None:
        os.dup2(parked, number)
        os.close(parked)


def test_descriptors_of_another_process() -> None:
    """LISTEN_PID of another process: they are not for us, and are not touched."""
    assert FdStore.from_environment({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "fuse"}).get("fuse") is None


@pytest.mark.parametrize(
    ("watched", "seconds"), [({}, 20.0), ({"WATCHDOG_PID": str(os.getpid())}, 20.0), ({"WATCHDOG_PID": "1"}, 0.0)]
)
def test_watchdog(watched: dict[str, str], seconds: float) -> None:
    """Its timeout is in microseconds, perhaps for another process; it is not inherited."""
    environment = {"WATCHDOG_USEC": "20000000", **watched}
    assert FdStore.from_environment(environment).watchdog == seconds
    assert not environment
    assert FdStore.from_environment({}).watchdog == 0.0


def test_nothing_is_passed() -> None:
    """Without a keeper it is an ordinary table: what is kept can be had, and dropped."""
    fds = FdStore.from_environment({})
    reading, writing = os.pipe()
    os.close(writing)
    fds.keep("fuse", reading)
    assert fds.get("fuse") == reading
    fds.drop("fuse")
    fds.drop("fuse")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_kept_descriptor_is_sent(notify: socket.socket) -> None:
    """A duplicate goes out with FDSTORE, its name, and the order not to judge it."""
    fds = FdStore({}, notify.getsockname())
    reading, writing = os.pipe()
    fds.keep("fuse", reading)
    os.write(writing, b"through")
    os.close(writing)
    message, descriptors, _, _ = socket.recv_fds(notify, 1000, 4)
    assert message.decode().splitlines() == ["FDSTORE=1", "FDNAME=fuse", "FDPOLL=0"]
    assert os.read(descriptors[0], 100) == b"through"
    os.close(descriptors[0])
    fds.drop("fuse")
    assert notify.recv(1000).decode().splitlines() == ["FDSTOREREMOVE=1", "FDNAME=fuse"]


def test_abstract_address() -> None:
    """systemd writes the first, zero byte of an abstract name as @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")
        FdStore({}, "@" + listening.getsockname()[1:].decode()).notify("READY=1")
        assert listening.recv(100) == b"READY=1"


def test_keeper_has_died(tmp_path: Path, expect_log: LogWatch) -> None:
    """A missing keeper is only a warning."""
    expect_log("will not survive")
    FdStore({}, str(tmp_path / "nobody")).notify("READY=1")
