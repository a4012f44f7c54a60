"""Redirects: where they lead, and where they must not."""

from __future__ import annotations

from typing import Final

from lazyfs.errors import BadAnswer
from lazyfs.registry.url import Url, follow

MAX_REDIRECTS: Final = 10
"""As many as Go's clients follow, or one more."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def redirected(what: str, status: int, url: Url, location: str, visited: list[Url]) -> Url:
    """Where a redirect from `url` leads, noted in `visited`. Raises BadAnswer for long ways, and for ways down to http.

    A URL may lead to itself while something is being made ready, so a circle is one only when it has no end.
    """
    if not location:
        raise BadAnswer(f"{what}: {url.authority} answers {status} without saying where to")
    target = follow(url, location, "the redirect")
    if len(visited) > MAX_REDIRECTS:
        if target in visited:
            raise BadAnswer(f"{what}: {url.authority} redirects in a circle")
        raise BadAnswer(f"{what}: redirected more than {MAX_REDIRECTS} times, at last by {url.authority}")
    visited.append(target)
    return target
