"""Names for temporary files."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.store import temporary
from lazyfs.store.temporary import TemporaryFolder


def test_names_are_new_and_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads get distinct names in existing directories, a new one every so many files."""
    monkeypatch.setattr(temporary, "_FILES_A_FOLDER", 10)
    folder = TemporaryFolder(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(lambda _: folder.new(), range(200)))
    assert len(set(names)) == 200
    for name in names:
        Path(name).touch(exist_ok=False)
    folders = {os.path.dirname(name) for name in names}
    assert len(folders) > 10


def test_no_room_for_a_folder(tmp_path: Path) -> None:
    """If no directory can be created, files are created in the last one, or beside it."""
    folder = TemporaryFolder(tmp_path)
    Path(folder.path, "0.d").touch()
    Path(folder.new()).touch(exist_ok=False)
