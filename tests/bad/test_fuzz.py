"""Fuzzers of everything that parses what others wrote: seeded mutations of sound input, in a process with limits.

Whatever comes, a parser ends with a value or an error of ours, within memory and processor time that are in proportion: it is killed
by the kernel otherwise, and the seed that did it is in the last line. A few seconds each in an ordinary run, a minute with `-m slow`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bad.limited import PEAK, run_limited

TARGETS = ["toc", "tar", "manifest", "member", "spool"]


def fuzz(target: str, seconds: int, seed: int, folder: Path) -> None:
    """Run one fuzzer for so many seconds of processor time."""
    cost = run_limited(sys.executable, "-m", "tests.bad.fuzz", target, str(seconds), str(seed), str(folder), cpu=2 * seconds + 10)
    assert cost.code == 0, f"after {cost.cpu:.1f} s, {cost.peak / 1e6:.0f} MB: {cost.said[-4000:]}"
    assert cost.peak <= PEAK, cost.said[-500:]


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_seconds_of_it(target: str, tmp_path: Path) -> None:
    """The same seeds every time: what fails here fails for everybody."""
    fuzz(target, 2, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_minute_of_it(target: str, tmp_path: Path) -> None:
    """Further seeds."""
    fuzz(target, 60, 1_000_000, tmp_path)
