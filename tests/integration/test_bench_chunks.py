"""The measurement of what a chunk costs, with files so small that it is over in seconds: that it runs, not what it finds."""

from __future__ import annotations

import pytest

from bench import chunks
from bench.place import open_place

pytestmark = pytest.mark.fuse


def test_it_measures() -> None:
    """Each figure has its rounds and what it is measured against."""
    with open_place(lambda _: None) as place:
        figures = chunks.measure(place, (300_000, 2_000_000), rounds=1)
    assert [figure.name.partition(":")[0] for figure in figures] == ["portable, cold", "portable, all here", "native, cold"]
    assert all(len(figure.rounds) == 1 and figure.baseline and figure.unit == "µs" for figure in figures)
