"""A comparison of two checkouts says what differs, and by how much two runs of the same code differ."""

from __future__ import annotations

from typing import Any

import pytest

from bench.compare import SIDES, Comparison, compare, confidence


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
    assert compared.within is within


def test_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    """A round in which the machine was ten times as slow changes no ratio."""
    compared = Comparison("read", "cold", "s", (1.0, 10.0, 2.0), (2.0, 20.0, 2.0), (1.0, 10.0, 2.0))
    assert compared.ratios == pytest.approx((2.0, 2.0, 1.0))
    assert compared.ratio == pytest.approx(2.0)
    record = compared.record()
    assert record["range"] == pytest.approx((1.0, 2.0))
    assert record["confidence"] == pytest.approx(0.75)


def test_rounds_that_disagree_claim_no_difference() -> None:
    """Even where their median is far outside the noise."""
    compared = Comparison("read", "cold", "s", (1.0, 1.0, 1.0), (2.0, 2.0, 0.9), (1.0, 1.0, 1.0))
    assert compared.noise == (1.0, 1.0)
    assert compared.within


def test_range_of_five_rounds_is_named_94_percent() -> None:
    """The median lies outside only where all rounds fell on one side of it."""
    assert confidence(5) == pytest.approx(0.9375)
