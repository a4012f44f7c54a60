"""How much of a file is in memory."""

from __future__ import annotations

import os
from pathlib import Path

from lazyfs.kernel.page_cache import cached_pages


def test_pages_come_and_go(tmp_path: Path) -> None:
    """Written, they are there; dropped, they are not (tmpfs has nowhere to drop them to)."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * 4096))
    fd = os.open(path, os.O_RDONLY)
    assert cached_pages(fd) == 3
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached_pages(fd) in {0, 3}
    os.close(fd)
    (tmp_path / "empty").touch()
    fd = os.open(tmp_path / "empty", os.O_RDONLY)
    assert cached_pages(fd) == 0
    os.close(fd)
