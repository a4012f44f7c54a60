"""Blobs at the URLs of their descriptors: which servers are asked, in which order, and with which credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.errors import NotFound, RangeIgnored, Unauthorized
from lazyfs.format.digest import digest_of
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.credentials import Credentials
from lazyfs.source.layout import Layout
from lazyfs.source.protocol import ImageSource
from lazyfs.source.repository import Repository
from tests.unit.registry.scripted import Request, Server, partial, reply, serving

BLOB = bytes(range(256)) * 10_000
DIGEST = digest_of(BLOB)


def serves(request: Request) -> bytes:
    """A server with the blob."""
    return partial(BLOB, request)


def refuses(status: int) -> Callable[[Request], bytes]:
    """A server without it."""
    return lambda _request: reply(status)


@asynccontextmanager
async def two(
    registry: Callable[[Request], bytes], other: Callable[[Request], bytes]
) -> AsyncIterator[tuple[Server, Server, Repository]]:
    """The registry, the host of the URLs, and a client with a password for the registry."""
    async with serving(Server(registry)) as first, serving(Server(other)) as second:
        source = Repository(first.host, "a/b", AccessOptions(Credentials("me", "secret")))
        try:
            yield first, second, source
        finally:
            await source.aclose()


async def read(source: ImageSource, *urls: str, start: int = 5) -> bytes:
    """A few bytes."""
    async with source.open_range(DIGEST, len(BLOB), start, start + 10, urls=urls) as stream:
        return bytes(await stream.receive_exactly(10))


async def test_a_url_serves_what_the_registry_does_not() -> None:
    """It gets no credentials, and is asked first from then on."""

    def closed(request: Request) -> bytes:
        if "authorization" not in request.headers:
            return reply(401, www_authenticate='Basic realm="x"')
        return reply(404)

    async with two(closed, serves) as (registry, other, source):
        url = f"http://{other.host}/over there?signed=1"
        assert await read(source, url) == BLOB[5:15]
        assert await read(source, url, start=2000) == BLOB[2000:2010]
    assert [request.target for request in other.requests] == ["/over%20there?signed=1"] * 2
    assert not any("authorization" in request.headers for request in other.requests)
    assert "authorization" in registry.requests[-1].headers
    assert len(registry.requests) == 2


async def test_what_the_registry_has_is_asked_for_nowhere_else() -> None:
    """The registry's copy is as good, and no third party learns of the request."""
    async with two(serves, serves) as (_, other, source):
        assert await read(source, f"http://{other.host}/x") == BLOB[5:15]
    assert not other.requests


async def test_a_url_of_the_registry_itself_gets_no_credentials() -> None:
    """Another party's manifest must not make us send them, and a login that it asks for is not done."""

    def mixed(request: Request) -> bytes:
        if request.target.startswith("/v2/"):
            return reply(404) if "authorization" in request.headers else reply(401, www_authenticate='Basic realm="x"')
        return reply(401, www_authenticate='Basic realm="x"')

    async with two(mixed, serves) as (registry, _, source):
        with pytest.raises(NotFound, match=r"answers 404; blob .* answers 401"):
            await read(source, f"http://{registry.host}/elsewhere")
    assert [request.headers.get("authorization", "") for request in registry.requests if request.target == "/elsewhere"] == [""]


async def test_urls_are_asked_in_their_order() -> None:
    """Each until one serves the blob. Failures are not remembered."""

    def answer(request: Request) -> bytes:
        return partial(BLOB, request) if request.target == "/third" else reply(403)

    async with two(refuses(404), answer) as (_, other, source):
        assert (
            await read(source, *(f"http://{other.host}/{name}" for name in ("first", "second", "third", "fourth"))) == BLOB[5:15]
        )
    assert [request.target for request in other.requests] == [
        "/first",
        "/first",
        "/second",
        "/second",
        "/third",
    ]  # with and without a range


async def test_the_error_is_of_all_places() -> None:
    """Of the kind that leaves the most options: whole blobs can be fetched, and an outage may end."""
    async with two(refuses(404), lambda _: reply(200, BLOB)) as (_, other, source):
        with pytest.raises(RangeIgnored):
            await read(source, f"http://{other.host}/x", start=2 << 20)
    async with two(refuses(403), refuses(404)) as (_, other, source):
        with pytest.raises(Unauthorized, match=f"answers 403; blob {DIGEST} at {other.host}: {other.host} answers 404"):
            await read(source, f"http://{other.host}/x")


async def test_another_place_is_asked_for_what_came_wrong() -> None:
    """The registry's bytes are not those of the blob."""
    async with two(lambda request: partial(bytes(len(BLOB)), request), serves) as (_, other, source):
        url = f"http://{other.host}/x"
        assert await read(source, url) == bytes(10)
        source.distrust(DIGEST)
        assert await read(source, url) == BLOB[5:15]


async def test_a_layout_that_was_copied_without_foreign_layers(tmp_path: Path) -> None:
    """As skopeo copies it."""
    async with serving(Server([])) as other:
        other.script = serves
        layout = Layout(tmp_path)
        with pytest.raises(NotFound):
            await read(layout)
        assert await read(layout, f"http://{other.host}/x") == BLOB[5:15]
        other.script = refuses(404)
        with pytest.raises(NotFound, match=r"answers 404; .* does not exist"):
            await read(layout, f"http://{other.host}/x")
        await layout.aclose()
