"""A measured quantity: its rounds, what it is measured against, and the bar that it has to reach."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import msgspec


class Baseline(msgspec.Struct, frozen=True):
    """The same quantity of something else, in the same unit, measured in the same run."""

    name: str
    rounds: tuple[float, ...]

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.rounds)


class Bar(msgspec.Struct, frozen=True):
    """What has to hold of a figure's value, or of its ratio to the baseline."""

    sign: Literal["<=", ">=", "=="]
    limit: float
    of: Literal["value", "ratio"] = "value"

    def holds(self, measured: float) -> bool:
        """Whether `measured` reaches it."""
        match self.sign:
            case "<=":
                return measured <= self.limit
            case ">=":
                return measured >= self.limit
            case "==":
                return measured == self.limit


class Figure(msgspec.Struct, frozen=True):
    """One quantity of one measurement; `value` is the median of its rounds."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    bar: Bar | None = None
    """None: worth knowing, and no promise."""
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        if not self.rounds or (self.baseline and not self.baseline.rounds):
            raise ValueError(f"{self.name} was not measured")
        if self.bar and self.bar.of == "ratio" and not self.baseline:
            raise ValueError(f"{self.name} has a bar for its ratio, and nothing that it is measured against")

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.rounds)

    @property
    def ratio(self) -> float | None:
        """Times the baseline; None where there is none, or it is 0."""
        return self.value / self.baseline.value if self.baseline and self.baseline.value else None

    @property
    def ok(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        if self.bar is None:
            return None
        measured = self.value if self.bar.of == "value" else self.ratio
        return measured is not None and self.bar.holds(measured)

    def record(self, measurement: str) -> dict[str, Any]:
        """The figure as a line of the record, derived values included, so that readers need not compute them."""
        return {
            "kind": "figure",
            "measurement": measurement,
            "name": self.name,
            "unit": self.unit,
            **spread(self.rounds),
            "baseline": {"name": self.baseline.name, **spread(self.baseline.rounds)} if self.baseline else None,
            "ratio": self.ratio,
            "bar": self.bar,
            "ok": self.ok,
        }


def spread(rounds: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and rounds, in the order in which they were measured."""
    return {"value": statistics.median(rounds), "low": min(rounds), "high": max(rounds), "rounds": rounds}
