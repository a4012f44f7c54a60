"""Where a file is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format.entry import Entry
from lazyfs.layertar.cut import CHUNK_SIZE, DEFAULT, every
from lazyfs.layertar.plan import Planned


def spans(size: int, chunk_size: int) -> list[tuple[int, int]]:
    """How a file of that size is cut, unread."""
    return [tuple(span) for span in every(chunk_size)(Planned(Entry(b"f", "reg", size=size)), lambda _at, _size: b"")]


@given(st.integers(0, 200), st.integers(1, 50))
def test_the_spans_cover_the_file(size: int, chunk_size: int) -> None:
    """One after the other, none empty or too large, all but the last of one size."""
    found = spans(size, chunk_size)
    assert [byte for offset, length in found for byte in range(offset, offset + length)] == list(range(size))
    assert all(length == chunk_size for _, length in found[:-1]) and all(1 <= length <= chunk_size for _, length in found)


def test_what_is_in_stores_stays_as_it_was_cut() -> None:
    """Files of layers that were fetched whole lie in stores under the names that these chunks give them."""
    assert CHUNK_SIZE == 4 << 20
    assert list(DEFAULT(Planned(Entry(b"f", "reg", size=CHUNK_SIZE + 1)), lambda _at, _size: b"")) == [(0, 4 << 20), (4 << 20, 1)]
