"""A user's options for access to a registry, and the URL that they lead to."""

from __future__ import annotations

from typing import Final

import msgspec

from lazyfs.errors import UsageError
from lazyfs.registry.credentials import Credentials
from lazyfs.registry.url import Url, is_loopback, parse_url

_HUB_HOSTS: Final = {"docker.io": "registry-1.docker.io"}


class AccessOptions(msgspec.Struct, frozen=True):
    """Options of one command for one registry. A layout needs none of them."""

    creds: Credentials | None = None
    """Used instead of those in ~/.docker/config.json."""
    plain_http: bool = False


def api_url(host: str, options: AccessOptions) -> Url:
    """The API root of the registry that users call `host`: https, except for loopback and with plain_http."""
    name = _HUB_HOSTS.get(host, host).lower()
    url = parse_url(f"https://{name}/v2/", "the registry's host")
    return parse_url(f"http://{name}/v2/", "the registry's host") if options.plain_http or is_loopback(url.host) else url


def parse_creds(text: str) -> Credentials:
    """`USER:PASSWORD` from a command line. Raises UsageError, which does not quote it."""
    user, colon, password = text.partition(":")
    if not colon or not user:
        raise UsageError("--creds needs USER:PASSWORD")
    return Credentials(user, password)
