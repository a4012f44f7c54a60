"""docker's config.json, and what must never be shown of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import UsageError
from lazyfs.registry.access import AccessOptions, api_url, parse_creds
from lazyfs.registry.credentials import Credentials, configured


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config.json in use, which does not exist yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def encoded(text: str) -> str:
    """As docker login writes it."""
    return base64.b64encode(text.encode()).decode()


def test_no_config_has_no_credentials(config: Path) -> None:
    """Neither a missing file nor a missing entry is an error."""
    assert configured("registry.example") is None
    config.write_text("{}")
    assert configured("registry.example") is None


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.example:5000", "registry.example:5000"),
        ("https://registry.example", "registry.example"),
        ("https://registry.example/v2/", "registry.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_auths_by_host(config: Path, key: str, host: str) -> None:
    """The keys under which docker and similar tools store a registry."""
    config.write_text(json.dumps({"auths": {"other": {"auth": encoded("a:b")}, key: {"auth": encoded("me:pa:ss")}}}))
    assert configured(host) == ("me", "pa:ss", "")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "u", "password": "p"}, ("u", "p", "")),
        ({"auth": encoded("u:"), "identitytoken": "t"}, ("u", "", "t")),
        ({"auth": encoded("u:p\0\0")}, ("u", "p", "")),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": None, "username": "u", "password": "p", "identitytoken": None}, ("u", "p", "")),
        ({"Auth": encoded("u:p")}, ("u", "p", "")),
    ],
)
def test_shapes_of_an_entry(config: Path, entry: dict[str, Any], expected: tuple[str, str, str] | None) -> None:
    """`auth`, separate fields, an identity token. An empty entry of docker means a credential helper, which lazyfs does not
    call."""
    config.write_text(json.dumps({"auths": {"r": entry}}))
    assert configured("r") == expected


@pytest.mark.parametrize("content", ['{"auths": null}', '{"auths": {"r": null}}', '{"credsStore": null}'])
def test_null_is_not_an_entry(config: Path, content: str) -> None:
    """Go writes an empty map like this."""
    config.write_text(content)
    assert configured("r") is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"r": {"auth": "SECRET!"}}}',
        '{"auths": {"r": {"auth": 3}}}',
        '{"auths": {"r": {"auth": "U0VDUkVU"}}}',
        '{"x": "SECRET',
    ],
)
def test_a_broken_config_is_named_but_not_shown(config: Path, content: str) -> None:
    """The error has the path, but no part of the content, not even in its chain of causes."""
    config.write_text(content)
    with pytest.raises(UsageError) as caught:
        configured("r")
    assert str(config) in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_config_that_cannot_be_read_is_an_error(config: Path) -> None:
    """A directory in its place."""
    config.mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        configured("r")


def test_credentials_have_no_readable_repr() -> None:
    """Not alone, and not within the options that contain them."""
    creds = parse_creds("me:pass:word")
    assert creds == ("me", "pass:word", "")
    assert creds.basic == "Basic bWU6cGFzczp3b3Jk"
    for shown in (repr(creds), str(creds), f"{creds}", repr(AccessOptions(creds)), str([creds])):
        assert "pass" not in shown


@pytest.mark.parametrize("text", ["", "SECRET", ":SECRET"])
def test_creds_need_both_parts(text: str) -> None:
    """They are not quoted in the error."""
    with pytest.raises(UsageError) as caught:
        parse_creds(text)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "plain_http", "expected"),
    [
        ("docker.io", False, "https://registry-1.docker.io/v2/"),
        ("registry.example", False, "https://registry.example/v2/"),
        ("registry.example:5000", True, "http://registry.example:5000/v2/"),
        ("registry.example", True, "http://registry.example/v2/"),
        ("localhost:5000", False, "http://localhost:5000/v2/"),
        ("127.0.0.1:443", False, "http://127.0.0.1:443/v2/"),
        ("[::1]:5000", False, "http://[::1]:5000/v2/"),
        ("Registry.Example:443", False, "https://registry.example/v2/"),
    ],
)
def test_where_the_api_is(host: str, plain_http: bool, expected: str) -> None:
    """https, except for loopback and with plain_http."""
    assert str(api_url(host, AccessOptions(Credentials("u", "p"), plain_http))) == expected
