"""Handles: whether a file that has no name any more still takes room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazyfs.kernel.handle import handle_of, is_there


@pytest.mark.root
def test_a_file_is_there_until_nobody_has_it(tmp_path: Path) -> None:
    """Named, unlinked but open, closed."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    handle = handle_of(str(path))
    assert is_there(folder, handle)
    with path.open("rb"):
        path.unlink()
        assert is_there(folder, handle)
    assert not is_there(folder, handle)
    path.write_bytes(b"another, perhaps with the same inode number")
    assert not is_there(folder, handle)
    os.close(folder)


@pytest.mark.root
def test_what_cannot_be_asked(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(FileNotFoundError, match="nothing"):
        handle_of(str(tmp_path / "nothing"))
