"""Sizes and ages as people write them."""

from __future__ import annotations

import pytest

from lazyfs.cli.options import parse_age, parse_size
from lazyfs.errors import UsageError


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
    """Powers of 1024, in capitals or not, with or without the unit."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "10X", "1.G", "٣", "5 G B", "9999999T", "1_000"])
def test_what_is_no_size(text: str) -> None:
    """Is refused in words, before anything is done with it."""
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "age"), [("90", 90.0), ("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0), ("7d", 604_800.0)])
def test_ages(text: str, age: float) -> None:
    """Seconds unless told otherwise."""
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "d", "-1d", "1w", "1M", "yesterday"])
def test_what_is_no_age(text: str) -> None:
    """Months are as long as one wants."""
    with pytest.raises(UsageError, match="is no age"):
        parse_age(text)
