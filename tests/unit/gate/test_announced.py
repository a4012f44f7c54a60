"""Recently announced objects."""

from __future__ import annotations

import time

import pytest

from lazyfs.gate.announced import RecentlyAnnounced


def test_for_a_minute_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one minute, at most two, whether others are added meanwhile or not."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    announced = RecentlyAnnounced()
    announced.note("first")
    assert announced("first")
    assert not announced("other")
    now[0] += 59
    announced.note("second")
    now[0] += 59
    assert announced("second")
    announced.note("third")
    assert announced("second")
    now[0] += 62
    announced.note("fourth")
    assert [name for name in ("first", "second", "third", "fourth") if announced(name)] == ["third", "fourth"]
    now[0] += 500
    assert not announced("fourth")
    announced.note("fifth")
    assert [name for name in ("third", "fourth", "fifth") if announced(name)] == ["fifth"]
