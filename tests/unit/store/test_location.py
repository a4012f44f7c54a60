"""The default location of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.store.location import default_directory


@pytest.mark.parametrize(
    ("uid", "cache", "expected"),
    [
        (0, "/x", "/var/lib/lazyfs"),
        (1000, "/x", "/x/lazyfs"),
        (1000, "", "/home/me/.cache/lazyfs"),
        (1000, "relative", "/home/me/.cache/lazyfs"),
    ],
)
def test_default(monkeypatch: pytest.MonkeyPatch, uid: int, cache: str, expected: str) -> None:
    """Root's is the machine's. A user's follows XDG, which ignores relative paths."""
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_directory() == Path(expected)
