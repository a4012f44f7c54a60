"""Connections that wait for their next request, a bounded number for each host."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from lazyfs.registry.connection import Connection, connect
from lazyfs.registry.proxy import Proxies
from lazyfs.registry.url import Url

CONNECTIONS_PER_HOST: Final = 8


class _Host(NamedTuple):
    slots: trio.Semaphore
    waiting: list[Connection]


class Pool:
    """All connections for ranges that one source has open."""

    def __init__(self, proxies: Proxies, tls: Callable[[], ssl.SSLContext]) -> None:
        self._proxies = proxies
        self._tls = tls
        self._hosts: dict[tuple[str, str, int], _Host] = {}

    async def acquire(self, url: Url, *, fresh: bool = False) -> Connection:
        """A connection to `url`'s host, to be given back with `release`; `fresh` takes none that was used before.

        Raises as `connect`. Cancelled: no connection is taken.
        """
        host = self._hosts.setdefault(url.origin, _Host(trio.Semaphore(CONNECTIONS_PER_HOST), []))
        await host.slots.acquire()
        try:
            while host.waiting and not fresh:
                connection = host.waiting.pop()
                if connection.idle:
                    return connection
                connection.close()
            return await connect(url, self._proxies.for_url(url), self._tls)
        except BaseException:
            host.slots.release()
            raise

    def release(self, url: Url, connection: Connection, *, reusable: bool) -> None:
        """Give a connection back; it is kept if `reusable`: the last body was read to its end, and the server agrees."""
        host = self._hosts[url.origin]
        if reusable:
            host.waiting.append(connection)
        else:
            connection.close()
        host.slots.release()

    def close(self) -> None:
        """Close what waits. Connections in use are closed by their users."""
        for host in self._hosts.values():
            while host.waiting:
                host.waiting.pop().close()
