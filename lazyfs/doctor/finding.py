"""The result of one check of `lazyfs doctor`."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "loss", "missing"]
"""`loss`: it works, but less well, as `text` says. `missing`: something does not work."""


class Finding(NamedTuple):
    """One sentence, and a hint that says what to do."""

    about: str
    """Identifies the check; stable across versions."""
    verdict: Verdict
    text: str
    hint: str = ""


def ok(about: str, text: str) -> Finding:
    """The check passed."""
    return Finding(about, "ok", text)


def degraded(about: str, text: str, hint: str = "") -> Finding:
    """It works, but less well than it could."""
    return Finding(about, "loss", text, hint)


def missing(about: str, text: str, hint: str = "") -> Finding:
    """It does not work."""
    return Finding(about, "missing", text, hint)
