"""Keys in messages."""

from __future__ import annotations

import urllib.parse

import pytest

from lazyfs.snapshots.snapshot import shown


@pytest.mark.parametrize("key", ["", "k8s.io/7/sha256:0123", "two\nlines", "ключ", "x" * 200])
def test_a_key_is_shown(key: str) -> None:
    """As it is, on one line."""
    assert shown(key) == repr(key)


@pytest.mark.parametrize("character", ["k", "ü", "🗝", "\0", "\U000e0001"])
def test_a_long_key_is_cut(character: str) -> None:
    """Three keys, the most in one message, fit percent-encoded into the 8 KiB header of a gRPC status."""
    cut = shown(character * 4096)
    assert cut.startswith(repr(character * 200)[:-1]) and cut.endswith("…")
    assert len(urllib.parse.quote(3 * cut)) < 8000
