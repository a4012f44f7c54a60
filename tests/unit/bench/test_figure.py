"""What a record says is computed from the rounds as it claims to be."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figure import Bar, Baseline, Figure
from bench.table import number, words

ROUNDS = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=9).map(tuple)


@given(ROUNDS, ROUNDS)
def test_values_are_medians(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    """No more than half of the rounds lie above the value, nor below it; the ratio is that of the two values."""
    figure = Figure("speed", "MB/s", ours, None, Baseline("peer", theirs))
    assert sum(each < figure.value for each in ours) <= len(ours) / 2
    assert sum(each > figure.value for each in ours) <= len(ours) / 2
    assert figure.baseline is not None
    assert figure.ratio == figure.value / figure.baseline.value
    assert figure.ok is None


@pytest.mark.parametrize(
    ("sign", "holding", "missing"), [("<=", (4.0, 5.0), (5.1,)), (">=", (5.0, 6.0), (4.9,)), ("==", (5.0,), (4.0, 6.0))]
)
def test_a_bar_holds_or_not(sign: str, holding: tuple[float, ...], missing: tuple[float, ...]) -> None:
    """The limit itself holds; what lies on its wrong side does not."""
    bar = msgspec.convert({"sign": sign, "limit": 5}, Bar)
    assert [Figure("", "s", (value,), bar).ok for value in holding] == [True] * len(holding)
    assert [Figure("", "s", (value,), bar).ok for value in missing] == [False] * len(missing)


def test_a_bar_may_ask_for_the_ratio() -> None:
    """Of a value of 10, a baseline of 4 makes a ratio of 2.5, and only that counts."""
    figure = Figure("speed", "MB/s", (10.0,), Bar(">=", 5, "ratio"), Baseline("peer", (4.0,)))
    assert (figure.ratio, figure.ok) == (2.5, False)
    assert msgspec.structs.replace(figure, bar=Bar(">=", 2.5, "ratio")).ok


def test_nothing_is_compared_with_nothing() -> None:
    """No rounds, and a bar for the ratio to no baseline, are refused; a baseline of 0 has no ratio, and holds no bar."""
    with pytest.raises(ValueError, match="not measured"):
        Figure("speed", "MB/s", ())
    with pytest.raises(ValueError, match="measured against"):
        Figure("speed", "MB/s", (1.0,), Bar(">=", 5, "ratio"))
    zero = Figure("speed", "MB/s", (1.0,), Bar(">=", 5, "ratio"), Baseline("peer", (0.0,)))
    assert (zero.ratio, zero.ok) == (None, False)


def test_a_record_has_everything() -> None:
    """A line holds the rounds in their order, and what follows from them."""
    figure = Figure("python", "s", (3.0, 1.0, 2.0), Bar("<=", 0.5, "ratio"), Baseline("pull", (8.0, 4.0)))
    assert json.loads(msgspec.json.encode(figure.record("mount_time"))) == {
        "kind": "figure",
        "measurement": "mount_time",
        "name": "python",
        "unit": "s",
        "value": 2.0,
        "low": 1.0,
        "high": 3.0,
        "rounds": [3.0, 1.0, 2.0],
        "baseline": {"name": "pull", "value": 6.0, "low": 4.0, "high": 8.0, "rounds": [8.0, 4.0]},
        "ratio": 2.0 / 6.0,
        "bar": {"sign": "<=", "limit": 0.5, "of": "ratio"},
        "ok": True,
    }


def test_the_table_shows_three_digits() -> None:
    """Digits that count, whatever the size, and the bar as one reads it."""
    assert [number(value) for value in (0.4567, 4.567, 45.67, 456.7, 4567.8, 7.0)] == ["0.46", "4.57", "45.7", "457", "4568", "7"]
    assert words(Bar(">=", 0.8, "ratio")) == "≥ 0.8 ×"
