"""The record of a connection's beginning: whole, of this boot and of this connection, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.fuse import init_record as module
from lazyfs.fuse.init_record import InitRecord, boot_id, load_record, save_record
from tests.synced import watched

GREETING = InitRecord(boot_id(), 41, bytes(range(104)), bytes(range(80)))


def test_round_trip(tmp_path: Path) -> None:
    """What was saved last is had back, under its number or without one; nothing else stays behind."""
    save_record(tmp_path / "init", InitRecord(boot_id(), 40, b"older", b"older"))
    save_record(tmp_path / "init", GREETING)
    assert load_record(tmp_path / "init", 41) == GREETING
    assert load_record(tmp_path / "init", None) == GREETING
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["init"]


def test_another_connection(tmp_path: Path) -> None:
    """The record of one connection says nothing of another."""
    save_record(tmp_path / "init", GREETING)
    assert load_record(tmp_path / "init", 40) is None


def test_another_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, numbers start again."""
    save_record(tmp_path / "init", GREETING)
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    assert load_record(tmp_path / "init", 41) is None


def test_no_record(tmp_path: Path) -> None:
    """None at all."""
    assert load_record(tmp_path / "init", 41) is None


def test_truncated_anywhere(tmp_path: Path) -> None:
    """No part of a record is one."""
    save_record(tmp_path / "init", GREETING)
    whole = (tmp_path / "init").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "init").write_bytes(whole[:length])
        assert load_record(tmp_path / "init", 41) is None


@given(st.binary(max_size=200))
def test_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any content of the file counts as no record."""
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_bytes(data)
    assert load_record(path, None) is None


def test_the_record_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """And so is its name, before the kernel gets the reply: a connection without a record cannot be taken over."""
    with watched() as done:
        save_record(tmp_path / "init", GREETING)
    size = (tmp_path / "init").stat().st_size
    (synced, temporary, whole), (renamed, name, _), (last, folder, _) = done
    assert (synced, whole) == ("synced", size)
    assert (renamed, name) == (f"renamed from {temporary}", str(tmp_path / "init"))
    assert (last, folder) == ("synced", str(tmp_path))
