"""What was found out about one thing that lazyfs needs, or does better with."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "loss", "missing"]
"""`loss`: it works, and something is lost, which is told. `missing`: what was asked for does not work."""


class Finding(NamedTuple):
    """One sentence, and one that says what to do."""

    about: str
    """Which check it is of: the same in every version."""
    verdict: Verdict
    text: str
    hint: str = ""


def ok(about: str, text: str) -> Finding:
    """All is well."""
    return Finding(about, "ok", text)


def degraded(about: str, text: str, hint: str = "") -> Finding:
    """It works, but."""
    return Finding(about, "loss", text, hint)


def missing(about: str, text: str, hint: str = "") -> Finding:
    """It does not work."""
    return Finding(about, "missing", text, hint)
