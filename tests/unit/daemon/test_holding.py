"""The lock and the sockets of a lazyfsd that were not passed to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.daemon import holding
from lazyfs.daemon.fdstore import FdStore
from lazyfs.daemon.holding import acquire_missing, listen, lock_store
from lazyfs.errors import LocalError


@pytest.fixture
def fds() -> Iterator[FdStore]:
    """Nothing is in it; what comes in is closed at the end."""
    store = FdStore({}, "")
    yield store
    for name in store.named(""):
        store.drop(name)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
        return True


def test_what_is_missing_is_taken(tmp_path: Path, fds: FdStore) -> None:
    """Lock, control socket and containerd's socket, each 0600; no other process gets the lock."""
    socket_path = tmp_path / "run" / "lazyfs" / "a.sock"
    acquire_missing(fds, tmp_path, {"snapshots-a": socket_path})
    assert sorted(fds.named("")) == ["control", "lock", "snapshots-a"]
    for path in (tmp_path / "lazyfsd.sock", socket_path):
        assert answers(path)
        assert path.stat().st_mode & 0o777 == 0o600
    assert lock_store(tmp_path) is None
    fds.drop("lock")
    lock = lock_store(tmp_path)
    assert lock is not None
    os.close(lock)


def test_what_is_there_stays(tmp_path: Path, fds: FdStore) -> None:
    """What was handed over at the right path is used; a socket at another path, or of a containerd that is not named, is let go."""
    right, moved, gone = tmp_path / "right.sock", tmp_path / "moved.sock", tmp_path / "gone.sock"
    for name, path in {"right": right, "moved": tmp_path / "old.sock", "gone": gone}.items():
        fds.keep(f"snapshots-{name}", listen(path))
    before = right.stat().st_ino
    acquire_missing(fds, tmp_path, {"snapshots-right": right, "snapshots-moved": moved})
    assert right.stat().st_ino == before
    assert sorted(fds.named("snapshots-")) == ["moved", "right"]
    assert [answers(path) for path in (right, moved, tmp_path / "old.sock", gone)] == [True, True, False, False]


def test_the_store_has_moved(tmp_path: Path, fds: FdStore) -> None:
    """The lock of another directory does not count: it is released, and this directory is locked."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    acquire_missing(fds, old, {})
    acquire_missing(fds, new, {})
    assert lock_store(new) is None
    lock = lock_store(old)
    assert lock is not None
    os.close(lock)
    assert answers(new / "lazyfsd.sock") and not answers(old / "lazyfsd.sock")
    acquire_missing(fds, new, {})
    assert lock_store(new) is None


def test_another_lazyfsd(tmp_path: Path, fds: FdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the lock is taken, the process waits and reports for what."""
    monkeypatch.setattr(holding, "_LOCK_TRIES", 2)
    monkeypatch.setattr(holding, "_LOCK_PAUSE", 0.0)
    lock = lock_store(tmp_path)
    assert lock is not None
    with pytest.raises(LocalError, match="another lazyfsd serves"):
        acquire_missing(fds, tmp_path, {})
    os.close(lock)
    assert not (tmp_path / "lazyfsd.sock").exists()


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    """A socket without a listener is replaced; one with a listener is not touched, even if its queue is full."""
    path = tmp_path / "a.sock"
    os.close(listen(path))
    living = socket.socket(fileno=listen(path))
    with living:
        living.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for caller in waiting:
            caller.setblocking(False)
            caller.connect_ex(str(path))
        inode = path.stat().st_ino
        with pytest.raises(LocalError, match=f"another process listens at {path}"):
            listen(path)
        assert path.stat().st_ino == inode
        for caller in waiting:
            caller.close()


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    """A wrong path in a configuration does not delete a file."""
    path = tmp_path / "letter"
    path.write_text("dear")
    with pytest.raises(OSError, match="already in use"):
        listen(path)
    assert path.read_text() == "dear"
