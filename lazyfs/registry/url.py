"""The URLs that lazyfs follows: http and https, ASCII.

They come from registries (redirects, upload locations, token realms), so they are hostile: the text becomes part of a request
line, and what they contain (a signature, a password) is a secret. Messages name only the host.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from lazyfs.errors import BadAnswer

MAX_URL: Final = 16 << 10
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_CLEAN = re.compile(r"[\x21-\x7e]+\Z")
_UNESCAPED = re.compile(r"[ \x80-\xff]")
_USERINFO = re.compile(r"(?:[A-Za-z0-9._:~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})*\Z")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?\Z")


class _Secret(str):
    """A string that is not shown by repr, only in the header that it is for."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "…" if self else "''"


_NO_SECRET: Final = _Secret()


class Url(NamedTuple):
    """An absolute URL, ready for a request line."""

    scheme: str
    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query, starting with a slash."""
    basic: _Secret = _NO_SECRET
    """The Authorization header for a request without another one: the URL's own `USER:PASSWORD@`, as Go's http client sends it.
    `str` omits it."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """Identifies the server that Authorization and connections belong to."""
        return self[:3]

    @property
    def address(self) -> str:
        """`HOST:PORT`, as used by CONNECT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        """The value of a Host header."""
        return self.address.removesuffix(f":{DEFAULT_PORTS[self.scheme]}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str, what: str, *, may_log_in: bool = False) -> Url:
    """Parse `text`. `may_log_in`: it may contain a user and a password. Raises BadAnswer, naming `what` but not the URL."""
    if len(text) > MAX_URL or not _CLEAN.match(text):
        raise BadAnswer(f"{what} is not a URL: it is empty, too long, or holds blanks or control characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadAnswer(f"{what} is not a URL") from None  # the cause might contain a password
    host = parts.hostname or ""
    if parts.scheme not in DEFAULT_PORTS or (parts.username is not None and not may_log_in):
        raise BadAnswer(f"{what} is not a plain http or https URL")
    if not _HOST.match(host) and not is_address(host):
        raise BadAnswer(f"{what} does not name a usable host")
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    basic = _NO_SECRET if parts.username is None else _basic(parts.netloc.rpartition("@")[0], what)
    return Url(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], target, basic)


def _basic(userinfo: str, what: str) -> _Secret:
    if not _USERINFO.match(userinfo):
        raise BadAnswer(f"{what} contains an invalid user name or password")
    user, _, password = userinfo.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return _Secret("Basic " + base64.b64encode(pair).decode("ascii"))


def follow(url: Url, location: str, what: str) -> Url:
    """The target of `location` in a response from `url`. Raises BadAnswer, also for a redirect from https to http.

    `location` is the header's bytes as Latin-1; see `escaped`.
    """
    location = escaped(location[: MAX_URL + 1].strip(" \t"))
    if len(location) > MAX_URL or not _CLEAN.match(location):
        raise BadAnswer(f"{what} of {url.authority} is not a URL: it is empty, too long, or holds blanks or control characters")
    try:
        joined = urljoin(str(url), location)
        names_a_host = bool(urlsplit(location).netloc)
    except ValueError:
        raise BadAnswer(f"{what} of {url.authority} is not a URL") from None  # the cause might contain a password
    found = parse_url(joined, f"{what} of {url.authority}", may_log_in=True)
    if not names_a_host:
        found = found._replace(basic=url.basic)
    if url.scheme == "https" and found.scheme == "http":
        raise BadAnswer(f"{url.authority} redirects from https to http ({found.authority}), which would give up all protection")
    return found


def escaped(text: str) -> str:
    """`text`, a header's bytes as Latin-1, with blanks and non-ASCII bytes escaped. Valid URLs have none, but Go's clients
    accept them."""
    return _UNESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)


def is_address(host: str) -> bool:
    """Whether `host` is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine: localhost, 127.0.0.0/8, ::1."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
