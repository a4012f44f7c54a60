"""`python -m bench.compare BASE NAME…`: this checkout beside another one, round by round, in one run.

BASE is a worktree of an earlier commit, made ready with its own `.ci/setup`. Each round measures BASE, this checkout, and BASE
again, one round of the measurement each. The two runs of BASE show how much two runs of the same code differ here: a difference
between this checkout and BASE that is no larger says nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench.machine import facts
from bench.table import number

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results"
ROUNDS: Final = 5
SIDES: Final = ("base", "this", "base again")
_TIMEOUT_S: Final = 1800
_TRIES: Final = 3

_ONE_ROUND: Final = """
import importlib, sys
for name in sys.argv[3:]:
    importlib.import_module("bench." + name).ROUNDS = 1
from bench.__main__ import main
sys.exit(main())
"""


class Comparison(NamedTuple):
    """One figure over all rounds, in the order in which they were measured."""

    measurement: str
    name: str
    unit: str
    base: tuple[float, ...]
    this: tuple[float, ...]
    again: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of each round: this checkout over the mean of the two runs of BASE beside it. Load that lasts a round cancels out."""
        return tuple(2 * this / (base + again) for base, this, again in zip(self.base, self.this, self.again, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def noise(self) -> tuple[float, float]:
        """The lowest and the highest ratio of two runs of BASE in one round, either way round."""
        ratios = [second / first for first, second in zip(self.base, self.again, strict=True)]
        ratios += [1 / ratio for ratio in ratios]
        return min(ratios), max(ratios)

    @property
    def within(self) -> bool:
        """Whether no difference can be claimed: the rounds disagree about its sign, or the ratio is inside the noise."""
        low, high = self.noise
        agree = all(ratio > 1 for ratio in self.ratios) or all(ratio < 1 for ratio in self.ratios)
        return not agree or low <= self.ratio <= high

    def record(self) -> dict[str, Any]:
        """A line of the record."""
        return {
            "kind": "comparison",
            **self._asdict(),
            "ratio": self.ratio,
            "range": (min(self.ratios), max(self.ratios)),
            "confidence": confidence(len(self.ratios)),
            "noise": self.noise,
            "within": self.within,
        }


def confidence(rounds: int) -> float:
    """The probability that the range of independent rounds contains the true median: 0.94 for five."""
    return 1 - 2 * 0.5**rounds


def main() -> int:
    """Compare, record, show. Exit code 1 when a difference can be claimed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("names", nargs="+", metavar="NAME", help="measurements of `python -m bench` that have rounds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", type=Path, metavar="FILE", help="where the record goes (results/DATE-compare[-NAME…].jsonl)")
    arguments = parser.parse_args()
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    record = arguments.record or RESULTS / ("-".join([today, "compare", *arguments.names]) + ".jsonl")
    console = Console(stderr=True)
    rounds: list[Mapping[str, Sequence[dict[str, Any]]]] = []
    for turn in range(arguments.rounds):
        measured = {}
        for side in SIDES:
            console.print(f"round {turn + 1} of {arguments.rounds}: {side}", style="dim", highlight=False)
            measured[side] = _measure(ROOT if side == "this" else arguments.base.resolve(), arguments.names)
        rounds.append(measured)
    compared = compare(rounds)
    lines = [facts() | {"base": _commit(arguments.base)}, *(each.record() for each in compared)]
    record.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    Console(width=None if sys.stdout.isatty() else 160).print(_table(compared))
    console.print(f"Recorded in {record}", style="dim", highlight=False)
    return 0 if all(each.within for each in compared) else 1


def compare(rounds: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[Comparison]:
    """The figures that all sides measured in all rounds and that are not 0; each round has each side's lines of a record."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: {side: [] for side in SIDES})
    for measured in rounds:
        for side, lines in measured.items():
            # A figure that is held against two baselines has two lines, with one value.
            once = {
                (line["measurement"], line["name"], line["unit"]): line["value"] for line in lines if line["kind"] == "figure"
            }
            for key, value in once.items():
                values[key][side].append(value)
    return [
        Comparison(*key, *(tuple(found[side]) for side in SIDES))
        for key, found in values.items()
        if all(len(found[side]) == len(rounds) and all(found[side]) for side in SIDES)
    ]


def _measure(tree: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """One round. A measurement may refuse to begin on a machine that is busy for a moment (link.py), and is tried again then."""
    for _ in range(_TRIES - 1):
        with suppress(SystemExit):
            return _measure_once(tree, names)
    return _measure_once(tree, names)


def _measure_once(tree: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as record:
        command = [tree / ".venv/bin/python", "-c", _ONE_ROUND, "--record", record.name, *names]
        # Exit code 1 says that a bar was missed, which is not what is asked here.
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        lines = Path(record.name).read_bytes().splitlines()
    if done.returncode not in {0, 1} or not lines:
        raise SystemExit(f"python -m bench in {tree} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return [msgspec.json.decode(line) for line in lines]


def _commit(tree: Path) -> str:
    command = ["git", "-c", f"safe.directory={tree.resolve()}", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.strip()


def _table(compared: Sequence[Comparison]) -> Table:
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "base", "this", "unit", "ratio", "range", "two runs of base", ""):
        shown.add_column(name, justify="left" if name in {"", "unit"} else "right")
    for each in compared:
        low, high = each.noise
        shown.add_row(
            f"{each.measurement}: {each.name}",
            number(statistics.median(each.base + each.again)),
            number(statistics.median(each.this)),
            each.unit,
            f"{each.ratio:.3f}",
            f"{min(each.ratios):.3f} … {max(each.ratios):.3f}",
            f"{low:.3f} … {high:.3f}",
            "" if each.within else "[bold red]differs",
        )
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
