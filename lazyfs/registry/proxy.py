"""HTTP_PROXY, HTTPS_PROXY and NO_PROXY, for both HTTP clients alike (httpx is given the result, and does not look itself).

Lower-case names take precedence over upper-case ones, as in curl. NO_PROXY is read as Go reads it: `example.com` includes its
subdomains, `.example.com` means only those; addresses, networks (CIDR), `HOST:PORT` and `*` work. Loopback never uses a proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from lazyfs.errors import BadAnswer, UsageError
from lazyfs.registry.url import Url, is_address, is_loopback, parse_url


class Proxy(NamedTuple):
    """One proxy. The URL does not contain the credentials."""

    url: Url
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.url.authority})"

    @property
    def authorization(self) -> str:
        """The value of a Proxy-Authorization header; empty if there is none."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


class Proxies(NamedTuple):
    """The proxies of the environment."""

    by_scheme: Mapping[str, Proxy]
    exceptions: tuple[str, ...]

    def for_url(self, url: Url) -> Proxy | None:
        """The proxy for `url`, if any."""
        proxy = self.by_scheme.get(url.scheme)
        if proxy is None or is_loopback(url.host) or any(_covers(exception, url) for exception in self.exceptions):
            return None
        return proxy


def from_environment(environment: Mapping[str, str] = os.environ) -> Proxies:
    """The proxies in `environment`. Raises UsageError if one is not an http or https proxy."""
    found = {}
    for scheme in ("http", "https"):
        name = scheme + "_proxy"
        text = environment.get(name) or environment.get(name.upper())
        if text:
            found[scheme] = _parse(text.strip(), name.upper())
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return Proxies(found, tuple(item.strip().lower() for item in exceptions.split(",") if item.strip()))


def _parse(text: str, name: str) -> Proxy:
    if "://" not in text:
        text = "http://" + text
    scheme, _, rest = text.partition("://")
    credentials, _, bare = rest.rpartition("@")
    try:
        url = parse_url(f"{scheme.lower()}://{bare}", name)
        parts = urlsplit("http://" + credentials + "@x" if credentials else "http://x")
    except (BadAnswer, ValueError):
        raise UsageError(f"{name} does not name an http or https proxy") from None  # the cause might contain its password
    return Proxy(url._replace(target="/"), unquote(parts.username or ""), unquote(parts.password or ""))


def _covers(exception: str, url: Url) -> bool:
    if exception == "*":
        return True
    if is_address(url.host):
        if exception in {url.host, url.address}:
            return True
        try:
            return ipaddress.ip_address(url.host) in ipaddress.ip_network(exception, strict=False)
        except ValueError:
            return False
    name, colon, port = exception.partition(":")
    if colon and port != str(url.port):
        return False
    name = name.removeprefix("*")
    return url.host == name or url.host.endswith(name if name.startswith(".") else "." + name)
