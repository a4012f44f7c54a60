"""Ages as people write them."""

from __future__ import annotations

import pytest

from lazyfs.cli.options import parse_age
from lazyfs.errors import UsageError


@pytest.mark.parametrize(("text", "age"), [("90", 90.0), ("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0), ("7d", 604_800.0)])
def test_ages(text: str, age: float) -> None:
    """In seconds without a unit."""
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "d", "-1d", "1w", "1M", "yesterday"])
def test_what_is_no_age(text: str) -> None:
    """Months are as long as one wants."""
    with pytest.raises(UsageError, match="is not an age"):
        parse_age(text)
