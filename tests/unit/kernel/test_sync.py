"""syncfs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lazyfs.kernel.sync import syncfs


def test_syncfs(tmp_path: Path) -> None:
    """Any descriptor of a file system will do; what is none is an error."""
    with (tmp_path / "file").open("wb") as file:
        syncfs(file.fileno())
    with pytest.raises(OSError) as refused:
        syncfs(-1)
    assert refused.value.errno == errno.EBADF
