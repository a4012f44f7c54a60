"""A database of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.snapshots.database import Snapshots


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[Snapshots]:
    with Snapshots(tmp_path) as opened:
        yield opened
