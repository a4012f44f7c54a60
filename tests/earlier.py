"""An earlier version of lazyfs, out of this repository's history, and its upgrade to the version of this checkout."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.commands import run

ROOT: Final = Path(__file__).parent.parent
COMMITS: Final = ("0ab514d", pytest.param("1b5725b", marks=pytest.mark.slow))
"""Versions that were in use: the first is from before rooms, classes and modules were renamed, the second from between. What they write
and say outlives them. Their requirements are today's, so that they run in the environment of the tests."""


def check_out(commit: str, folder: Path) -> Path:
    """Write the tree of a commit into `folder`, which is made. A clone without its history skips the test."""
    git = ("git", "-c", f"safe.directory={ROOT}", "-C", ROOT)
    if run(*git, "rev-parse", "--is-shallow-repository").stdout == b"true\n":
        pytest.skip(f"this clone is shallow: it may not have {commit}")
    archive = run(*git, "archive", commit).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder)
    return folder


class Installation:
    """`lazyfs` at one path for as long as it is installed, as pip has it: processes that run keep the version that they have loaded, and
    whatever they start is of the version that is there by then."""

    def __init__(self, folder: Path, commit: str) -> None:
        """Install that of `commit` in `folder`, which is made."""
        folder.mkdir()
        self._path = folder / "installed"
        self._path.symlink_to(check_out(commit, folder / commit))
        self.environment = {"PYTHONPATH": str(self._path), "PYTHONSAFEPATH": "1"}
        """In which Python finds it, and not the checkout in which the tests run."""

    def upgrade(self) -> None:
        """Put this checkout's in its place."""
        upgraded = self._path.with_name("upgraded")
        upgraded.symlink_to(ROOT)
        os.replace(upgraded, self._path)
