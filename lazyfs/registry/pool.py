"""Idle connections."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final

from lazyfs.registry.connection import Connection, connect
from lazyfs.registry.proxy import Proxies
from lazyfs.registry.url import Url

MAX_WAITING: Final = 64
"""Over all hosts, because redirects can lead to any number of them. More than the ranges that are open at a time (ranges.py),
so that a short pause of many readers does not cost their connections.
"""


class Pool:
    """All connections for ranges of one source. Its users limit how many are in use."""

    def __init__(self, proxies: Proxies, tls: Callable[[], ssl.SSLContext]) -> None:
        self._proxies = proxies
        self._tls = tls
        self._waiting: list[tuple[tuple[str, str, int], Connection]] = []
        """Each with its origin; the last used one at the end, because it is the least likely to be stale."""

    async def acquire(self, url: Url, *, fresh: bool = False) -> Connection:
        """A connection to `url`'s host, to be returned with `release`. `fresh`: a new one.

        Raises as `connect`. Cancelled: no connection is taken.
        """
        while not fresh and (connection := self._take(url.origin)):
            if connection.idle:
                return connection
            connection.close()
        return await connect(url, self._proxies.for_url(url), self._tls)

    def release(self, url: Url, connection: Connection, *, reusable: bool) -> None:
        """Return a connection. It is kept if `reusable`: the last body was read to its end, and the server agrees."""
        if not reusable:
            connection.close()
            return
        self._waiting.append((url.origin, connection))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.pop(0)[1].close()

    def close(self) -> None:
        """Close idle connections. Users close those in use."""
        while self._waiting:
            self._waiting.pop()[1].close()

    def _take(self, origin: tuple[str, str, int]) -> Connection | None:
        for position in range(len(self._waiting) - 1, -1, -1):
            if self._waiting[position][0] == origin:
                return self._waiting.pop(position)[1]
        return None
