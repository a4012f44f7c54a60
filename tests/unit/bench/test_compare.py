"""A comparison of two checkouts says what differs, and by how much two runs of the same code differ."""

from __future__ import annotations

from typing import Any

import pytest

from bench.compare import SIDES, Comparison, compare


def line(value: float, name: str = "cold") -> dict[str, Any]:
    """A figure, as a record has it."""
    return {"kind": "figure", "measurement": "read", "name": name, "unit": "s", "value": value}


def test_figures_of_all_rounds_are_compared() -> None:
    """By name; a figure that one side lacks, or that was 0, has no ratio and is left out."""
    machine = {"kind": "machine"}
    rounds = [
        {
            # Twice: held against two baselines.
            side: [machine, line(value + turn), line(value + turn), line(0, "none")]
            for side, value in zip(SIDES, (1.0, 2.0, 3.0), strict=True)
        }
        for turn in range(2)
    ]
    rounds[1]["this"].append(line(1, "new"))
    assert compare(rounds) == [Comparison("read", "cold", "s", (1, 2), (2, 3), (3, 4))]


@pytest.mark.parametrize(("this", "within"), [(1.0, True), (1.19, True), (1.3, False), (0.7, False)])
def test_noise_is_what_two_runs_of_one_code_differ_by(this: float, within: bool) -> None:
    """In either direction: which of the two came first is chance."""
    compared = Comparison("read", "cold", "s", (1.0, 1.0), (this, this), (1.0, 1.2))
    assert compared.noise == pytest.approx((1 / 1.2, 1.2))
    assert compared.ratio == pytest.approx(this)
    assert compared.within is within
