"""Whole trees compared, entry by entry: `walk` reads one, `compare` tells two apart, `python -m tests.tree A B` does both."""

from tests.tree.compare import Difference, compare
from tests.tree.walk import Record, walk

__all__ = ["Difference", "Record", "compare", "walk"]
