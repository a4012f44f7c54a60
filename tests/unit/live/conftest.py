"""Fixtures of the tests of live/."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.containerd.scripted import ScriptedImage
from tests.unit.fetch.scripted import RANDOM


@pytest.fixture
def image(tmp_path: Path) -> ScriptedImage:
    """An image of two lazy layers: one of twenty files, one of a single file."""
    files = {f"f{number:02}": RANDOM.randbytes(2000) for number in range(20)}
    return ScriptedImage(tmp_path / "image", files, {"other": RANDOM.randbytes(2000)})
