"""Hearing of the end of a file system."""

from __future__ import annotations

import errno
import os
import resource
import select
from pathlib import Path

import pytest

from lazyfs.kernel.mounting import Context, attach, unmount
from lazyfs.kernel.unmount_events import UnmountEvents


def mount_tmpfs(at: Path) -> None:
    at.mkdir()
    with Context("tmpfs") as context:
        context.create()
        mount = context.mount(0)
    attach(mount, at)
    os.close(mount)


@pytest.mark.root
def test_the_last_user_ends_it(tmp_path: Path) -> None:
    """A detached mount has not ended while somebody has a file open; others are distinguished; the watch itself keeps no mount busy."""
    one, other = tmp_path / "one", tmp_path / "other"
    mount_tmpfs(one)
    mount_tmpfs(other)
    events = UnmountEvents()
    try:
        watches = [events.add(str(one)), events.add(str(other))]
        assert events.ended() == []
        with (one / "held").open("w"):
            unmount(one, lazy=True)
            unmount(other)
            assert select.select([events], [], [], 10)[0]
            assert events.ended() == watches[1:]
        assert select.select([events], [], [], 10)[0]
        assert events.ended() == watches[:1]
        assert events.ended() == []
    finally:
        events.close()


def test_refusals(tmp_path: Path) -> None:
    """The error names what cannot be watched, and the limit if that is the cause."""
    events = UnmountEvents()
    try:
        with pytest.raises(FileNotFoundError, match="missing"):
            events.add(str(tmp_path / "missing"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="max_user_instances") as refused:
                UnmountEvents()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert refused.value.errno == errno.EMFILE
    finally:
        events.close()
