"""Files as they lie in a tar."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format.entry import Entry
from lazyfs.format.sparse import Extent
from lazyfs.layertar.content import read_content
from lazyfs.layertar.plan import Planned


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=5), st.integers(0, 5), st.data())
def test_holes_are_zeros(gaps: list[tuple[int, int]], end: int, data: st.DataObject) -> None:
    """Any stretch of a sparse file, wherever its extents begin and end."""
    store = bytes(range(1, 100))
    extents = []
    whole = b""
    at = 0
    for gap, size in gaps:
        whole += bytes(gap)
        extents.append(Extent(len(whole), at, size))
        whole += store[at : at + size]
        at += size
    whole += bytes(end)
    if not whole:
        return
    planned = Planned(Entry(b"s", "reg", size=len(whole)), tuple(extents))
    start = data.draw(st.integers(0, len(whole) - 1))
    size = data.draw(st.integers(1, len(whole) - start))
    assert read_content(planned, start, size, lambda at, size: store[at : at + size]) == whole[start : start + size]
