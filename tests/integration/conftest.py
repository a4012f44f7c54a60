"""What the tests of mounts share: one small image for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.readers import Readers
from tests.small_image import SmallImage, build


@pytest.fixture(scope="session")
def small(session_folder: Path) -> SmallImage:
    """The small image, built and converted. Its files are not to be changed."""
    return build(session_folder / "small")


@pytest.fixture
def reader(tmp_path: Path) -> Readers:
    """Call it with a mount and files: a process reads them. To be left before the mount is."""
    return Readers(tmp_path)
