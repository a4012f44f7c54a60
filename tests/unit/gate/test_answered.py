"""What overlayfs was told of a moment ago."""

from __future__ import annotations

import time

import pytest

from lazyfs.gate.answered import Answered


def test_for_a_minute_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one minute, at most two, whether others are noted meanwhile or not."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    answered = Answered()
    answered.note("first")
    assert answered("first")
    assert not answered("other")
    now[0] += 59
    answered.note("second")
    now[0] += 59
    assert answered("second")
    answered.note("third")
    assert answered("second")
    now[0] += 62
    answered.note("fourth")
    assert [name for name in ("first", "second", "third", "fourth") if answered(name)] == ["third", "fourth"]
    now[0] += 500
    assert not answered("fourth")
    answered.note("fifth")
    assert [name for name in ("third", "fourth", "fifth") if answered(name)] == ["fifth"]
