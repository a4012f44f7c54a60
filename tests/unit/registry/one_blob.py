"""One blob, and a client that reads ranges of it from a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lazyfs.errors import SourceError
from lazyfs.format.digest import digest_of
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.credentials import Credentials
from lazyfs.registry.ranges import Ranges
from tests.unit.registry.scripted import Request, Script, Server, partial, serving

BLOB = bytes(range(256)) * 40
DIGEST = digest_of(BLOB)
SCOPE = ("repository:r:pull",)


@asynccontextmanager
async def ranges_of(host: str) -> AsyncIterator[Ranges]:
    """The client for one registry."""
    client = RegistryClient(host, AccessOptions(Credentials("u", "p"), plain_http=True))
    try:
        yield Ranges(client)
    finally:
        await client.aclose()


async def read(ranges: Ranges, start: int, end: int, size: int = len(BLOB)) -> bytes:
    """One range as a whole."""
    async with ranges.open("blob B", f"r/blobs/{DIGEST}", SCOPE, DIGEST, size, start, end) as body:
        return bytes(await body.receive_exactly(end - start))


async def read_from(script: Script, start: int, end: int, size: int = len(BLOB)) -> tuple[bytes, Server]:
    """One range from its own server."""
    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        return await read(ranges, start, end, size), server


async def fails(script: Script, start: int = 10, end: int = 20, size: int = len(BLOB)) -> SourceError:
    """The error of one range."""
    with pytest.raises(SourceError) as caught:
        await read_from(script, start, end, size)
    return caught.value


def ranged(request: Request) -> bytes:
    """A correct server."""
    return partial(BLOB, request)
