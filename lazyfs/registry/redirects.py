"""Redirects: where they lead, and where they must not."""

from __future__ import annotations

from typing import Final

from lazyfs.errors import BadAnswer
from lazyfs.registry.url import Url, follow

MAX_REDIRECTS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def redirected(what: str, status: int, url: Url, location: str, visited: set[Url]) -> Url:
    """Where a redirect from `url` leads, noted in `visited`. Raises BadAnswer for circles, long ways, and ways down to http."""
    if not location:
        raise BadAnswer(f"{what}: {url.authority} answers {status} without saying where to")
    target = follow(url, location, "the redirect")
    if target in visited:
        raise BadAnswer(f"{what}: {url.authority} redirects in a circle")
    if len(visited) > MAX_REDIRECTS:
        raise BadAnswer(f"{what}: redirected more than {MAX_REDIRECTS} times, at last by {url.authority}")
    visited.add(target)
    return target
