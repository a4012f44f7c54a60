"""Proxies from the environment."""

from __future__ import annotations

import pytest

from lazyfs.errors import UsageError
from lazyfs.registry.proxy import from_environment
from lazyfs.registry.url import parse_url


def chosen(url: str, **environment: str) -> str:
    """The authority of the proxy for `url`, or nothing."""
    proxy = from_environment(environment).for_url(parse_url(url, "it"))
    return proxy.url.authority if proxy else ""


def test_each_scheme_has_its_own_proxy() -> None:
    """Lower case takes precedence."""
    both = {"HTTP_PROXY": "http://plain:1", "https_proxy": "http://secure:2", "HTTPS_PROXY": "http://never:3"}
    assert chosen("http://a/", **both) == "plain:1"
    assert chosen("https://a/", **both) == "secure:2"
    assert chosen("https://a/", HTTP_PROXY="http://plain:1") == ""
    assert chosen("https://a/", HTTPS_PROXY="") == ""


def test_a_proxy_without_scheme_is_http() -> None:
    """`proxy:3128`, as many write it."""
    assert chosen("https://a/", HTTPS_PROXY="proxy:3128") == "proxy:3128"


def test_proxy_credentials_are_hidden() -> None:
    """Sent, after decoding the URL's quoting, but never shown."""
    proxy = from_environment({"HTTPS_PROXY": "http://user:p%40ss@proxy:1"}).for_url(parse_url("https://a/", "it"))
    assert proxy is not None
    assert proxy.authorization == "Basic dXNlcjpwQHNz"
    assert "p@ss" not in repr(proxy)
    assert "ss" not in str(proxy.url)


@pytest.mark.parametrize(
    "text", ["socks5://user:SECRET@proxy:1", "http://user:SECRET@", "http://pro xy:1/", "http://u:SECRET@h:99999"]
)
def test_invalid_proxies(text: str) -> None:
    """The variable is named, but not its value, which may contain a password."""
    with pytest.raises(UsageError, match="HTTPS_PROXY") as caught:
        from_environment({"https_proxy": text})
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("exceptions", "host", "direct"),
    [
        ("*", "a.example", True),
        ("example", "example", True),
        ("example", "a.example", True),
        ("example", "anexample", False),
        (".example", "a.example", True),
        (".example", "example", False),
        ("*.example", "a.example", True),
        ("x, EXAMPLE ,y", "example", True),
        ("example:5000", "example:5000", True),
        ("example:5000", "example:5001", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3:80", True),
        ("fd00::/8", "[fd00::1]", True),
        ("nonsense/x", "10.1.2.3", False),
        ("", "localhost:5000", True),
        ("", "127.0.0.1", True),
        ("", "[::1]", True),
        ("", "example", False),
    ],
)
def test_no_proxy(exceptions: str, host: str, direct: bool) -> None:
    """As Go reads it. Loopback is always an exception."""
    assert chosen(f"http://{host}/", HTTP_PROXY="http://proxy:1", NO_PROXY=exceptions) == ("" if direct else "proxy:1")
