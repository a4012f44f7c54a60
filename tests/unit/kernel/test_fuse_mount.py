"""What the kernel reports of FUSE connections without one; with one, tests/integration/test_init_record.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.kernel.fuse_mount import connection_number, connections_at, mount_fuse


def test_no_connection(tmp_path: Path) -> None:
    """A descriptor of something else has no number, and a directory no connection."""
    with open(os.devnull) as other:
        assert connection_number(other.fileno()) is None
    assert connections_at(tmp_path, "lazyfs-gate") == []


def test_no_fuse_device(tmp_path: Path) -> None:
    """A descriptor of something else than /dev/fuse is refused, and nothing is mounted."""
    with open(os.devnull) as other, pytest.raises(OSError, match="fuse"):
        mount_fuse(other.fileno(), tmp_path, "lazyfs-gate", "test")
    assert connections_at(tmp_path, "lazyfs-gate") == []
