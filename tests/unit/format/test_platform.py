"""Platforms, as machines, images and people spell them."""

from __future__ import annotations

import pytest

from lazyfs.errors import UsageError
from lazyfs.format import platform as p


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", ("linux", "amd64", "")),
        ("linux/x86_64", ("linux", "amd64", "")),
        ("Linux/AMD64/v1", ("linux", "amd64", "")),
        ("linux/amd64/v3", ("linux", "amd64", "v3")),
        ("linux/arm64/v8", ("linux", "arm64", "")),
        ("linux/aarch64", ("linux", "arm64", "")),
        ("linux/arm", ("linux", "arm", "v7")),
        ("linux/arm/6", ("linux", "arm", "v6")),
        ("linux/armhf", ("linux", "arm", "v7")),
        ("linux/i686", ("linux", "386", "")),
    ],
)
def test_platforms_have_one_spelling(text: str, expected: tuple[str, str, str]) -> None:
    """Aliases and implied variants come out alike."""
    assert p.parse_platform(text) == expected
    assert p.parse_platform(str(p.parse_platform(text))) == expected


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/arm/"])
def test_what_is_no_platform(text: str) -> None:
    """A UsageError, because only people write these."""
    with pytest.raises(UsageError, match="platform"):
        p.parse_platform(text)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("s390x", "linux/s390x"),
    ],
)
def test_this_platform(monkeypatch: pytest.MonkeyPatch, machine: str, expected: str) -> None:
    """What uname says, in Go's names."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert str(p.this_platform()) == expected
