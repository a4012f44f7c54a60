"""The kernel's table of mounts, as we read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.mount import table
from lazyfs.mount.table import Mounted, find_mount


def test_a_mount_is_found_through_a_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lists a mount under the directory's real name, whatever the user called it."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mounted = Mounted(real, "0:99", "docker://image", 0)
    monkeypatch.setattr(table, "our_mounts", lambda: [mounted])
    assert find_mount(real) == mounted
    assert find_mount(tmp_path / "link") == mounted
    assert find_mount(tmp_path) is None


def test_the_uppermost_of_two_mounts_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest of several at one place is the one that is seen, and the one to take away first."""
    below, above = Mounted(tmp_path, "0:98", "below", 0), Mounted(tmp_path, "0:99", "above", 0)
    monkeypatch.setattr(table, "our_mounts", lambda: [below, above])
    assert find_mount(tmp_path) == above
