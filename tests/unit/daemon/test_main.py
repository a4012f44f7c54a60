"""`lazyfsd` from the outside, where it does not come to serving."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lazyfs.daemon.__main__ import main
from tests.commands import run

LAZYFSD = (sys.executable, "-m", "lazyfs.daemon", "--store")


def test_directory_of_something_else(tmp_path: Path) -> None:
    """Where other files are it writes nothing, and says what to do."""
    (tmp_path / "letter").write_text("dear")
    said = run(*LAZYFSD, tmp_path, code=5).stderr.decode()
    assert f"{tmp_path} holds other files" in said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == ["letter"]


@pytest.mark.root
def test_directory_of_somebody_else(tmp_path: Path) -> None:
    """The owner of the directory could make root write anywhere, by a link."""
    os.chown(tmp_path, 65534, 65534)
    assert "belongs to user id 65534" in run(*LAZYFSD, tmp_path, code=5).stderr.decode()
    assert os.listdir(tmp_path) == []


def test_no_directory_at_all(tmp_path: Path) -> None:
    """A path that cannot be one is an error in words."""
    (tmp_path / "file").touch()
    said = run(*LAZYFSD, tmp_path / "file" / "store", code=5).stderr.decode()
    assert "cannot be used" in said
    assert "Traceback" not in said


def test_systemd_does_not_start_it_in_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot come up is put off before its end, where systemd starts it again at once; else whoever asked is told at once."""
    (tmp_path / "letter").write_text("dear")
    (tmp_path / "config").write_text("stor = 1")
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getppid()))  # a unit's, not the daemon itself
    commands = (["--store", str(tmp_path)], ["--config", str(tmp_path / "config")])
    assert [main(command) for command in commands] == [5, 2]
    assert not waited
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert [main(command) for command in commands] == [5, 2]
    assert len(waited) == 2
    assert main(["--check-config", *commands[1]]) == 2
    assert len(waited) == 2


def test_starts_quickly() -> None:
    """The keeper imports nothing that it could fail with, or that keeps memory."""
    heavy = {"trio", "pyfuse3", "httpx", "msgspec", "sqlite3", "ctypes", "logging"}
    program = "import sys, lazyfs.daemon.__main__; print(*sys.modules)"
    assert not heavy & set(run(sys.executable, "-c", program).stdout.decode().split())
