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
"""Versions from before and from the middle of a series of renamings. They have today's requirements, so that they run in the environment
of the tests."""


def check_out(commit: str, folder: Path) -> Path:
    """Write the tree of a commit into `folder`, which is created. Skips the test in a shallow clone."""
    git = ("git", "-c", f"safe.directory={ROOT}", "-C", ROOT)
    if run(*git, "rev-parse", "--is-shallow-repository").stdout == b"true\n":
        pytest.skip(f"this clone is shallow and may lack {commit}")
    archive = run(*git, "archive", commit).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder)
    return folder


class Installation:
    """`lazyfs` at a fixed path, as pip installs and upgrades it: a running process keeps the code that it has loaded, and what it starts
    after an upgrade is the new version."""

    def __init__(self, folder: Path, commit: str) -> None:
        """Install the version of `commit` in `folder`, which is created."""
        folder.mkdir()
        self._path = folder / "installed"
        self._path.symlink_to(check_out(commit, folder / commit))
        self.environment = {"PYTHONPATH": str(self._path), "PYTHONSAFEPATH": "1"}
        """With these variables Python finds it instead of the checkout."""

    def upgrade(self) -> None:
        """Replace it by this checkout."""
        upgraded = self._path.with_name("upgraded")
        upgraded.symlink_to(ROOT)
        os.replace(upgraded, self._path)
