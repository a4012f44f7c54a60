"""The record of a connection's beginning: whole, of this boot and of this connection, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.fuse import saved as module
from lazyfs.fuse.saved import Greeting, boot_id, save, saved
from tests.synced import watched

GREETING = Greeting(boot_id(), 41, bytes(range(104)), bytes(range(80)))


def test_round_trip(tmp_path: Path) -> None:
    """What was saved last is had back, under its number or without one; nothing else stays behind."""
    save(tmp_path / "init", Greeting(boot_id(), 40, b"older", b"older"))
    save(tmp_path / "init", GREETING)
    assert saved(tmp_path / "init", 41) == GREETING
    assert saved(tmp_path / "init", None) == GREETING
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["init"]


def test_another_connection(tmp_path: Path) -> None:
    """The record of one connection says nothing of another."""
    save(tmp_path / "init", GREETING)
    assert saved(tmp_path / "init", 40) is None


def test_another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a boot, numbers begin anew."""
    save(tmp_path / "init", GREETING)
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    assert saved(tmp_path / "init", 41) is None


def test_no_record(tmp_path: Path) -> None:
    """None at all."""
    assert saved(tmp_path / "init", 41) is None


def test_truncated_anywhere(tmp_path: Path) -> None:
    """No part of a record is one."""
    save(tmp_path / "init", GREETING)
    whole = (tmp_path / "init").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "init").write_bytes(whole[:length])
        assert saved(tmp_path / "init", 41) is None


@given(st.binary(max_size=200))
def test_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever lies there is no error."""
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_bytes(data)
    assert saved(path, None) is None


def test_the_record_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """And its name is, before the kernel is answered: a connection without a record can be taken over by nobody."""
    with watched() as done:
        save(tmp_path / "init", GREETING)
    size = (tmp_path / "init").stat().st_size
    (synced, temporary, whole), (renamed, name, _), (last, folder, _) = done
    assert (synced, whole) == ("synced", size)
    assert (renamed, name) == (f"renamed from {temporary}", str(tmp_path / "init"))
    assert (last, folder) == ("synced", str(tmp_path))
