"""Sizes in options."""

from __future__ import annotations

import pytest

from lazyfs.errors import UsageError
from lazyfs.store.size import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("500M", 500 << 20),
        ("1.5g", 3 << 29),
        ("20GiB", 20 << 30),
        ("2TB", 2 << 40),
        (" 7 ", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Powers of 1024, in upper or lower case, with or without the unit."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "10X", "1.G", "٣", "5 G B", "9999999T", "1_000"])
def test_invalid_sizes(text: str) -> None:
    """It is refused with a message before anything is done."""
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
