"""Redirects, and their limits."""

from __future__ import annotations

from typing import Final

from lazyfs.errors import BadAnswer
from lazyfs.registry.url import Url, follow

MAX_REDIRECTS: Final = 10
"""As many as Go's clients follow, or one more."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def redirected(what: str, status: int, url: Url, location: str, visited: list[Url]) -> Url:
    """The target of a redirect from `url`, appended to `visited`. Raises BadAnswer for too many redirects, and from https to
    http.

    A URL may redirect to itself while something is being prepared, so a loop is an error only at the maximum.
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
