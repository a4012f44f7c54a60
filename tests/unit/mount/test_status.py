"""Asking a mount that may be dead or hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import MountFailed
from lazyfs.mount import status


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mount that takes the question and never answers, until the test is over."""
    over = threading.Event()
    monkeypatch.setattr(status, "_STATUS_DEADLINE", 0.01)
    monkeypatch.setattr(status.os, "getxattr", lambda *_: over.wait() and b"")
    yield
    over.set()


def test_a_mount_that_hangs_is_reported(hanging: None) -> None:
    """`lazyfs status` names it and goes on to the next one."""
    with pytest.raises(MountFailed, match="/mnt does not answer"):
        status.ask_status(Path("/mnt"))
    assert status.ask_process(Path("/mnt"), 0.01) is None


def test_a_dead_mount_is_reported(tmp_path: Path) -> None:
    """As is a directory that is not a mount."""
    with pytest.raises(MountFailed, match="does not answer"):
        status.ask_status(tmp_path)
    assert status.ask_process(tmp_path, 10) is None
