"""TLS and proxies, for both HTTP clients: the range reader and httpx."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme

from lazyfs.errors import BadAnswer, Unreachable
from lazyfs.format.digest import digest_of
from lazyfs.registry import tls
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.credentials import Credentials
from lazyfs.registry.ranges import Ranges
from lazyfs.registry.url import parse_url
from tests.unit.registry.scripted import Proxy, Reply, Request, Server, partial, reply, serving

BLOB = bytes(range(256)) * 1000
DIGEST = digest_of(BLOB)
SCOPE = ("repository:r:pull",)
HOST = "registry.test"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A CA that no system knows."""
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SSL_CERT_FILE names it, and the context is created again."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    tls.system_context.cache_clear()
    yield
    tls.system_context.cache_clear()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxy settings do not apply to these tests."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """The context for a server with these names."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


def registry(request: Request) -> bytes:
    """Serves ranges and everything else."""
    return partial(BLOB, request) if "range" in request.headers else reply(200, b"document")


@asynccontextmanager
async def client(host: str, *, plain_http: bool = False, secure: bool = False) -> AsyncIterator[tuple[RegistryClient, Ranges]]:
    """A client. `secure`: use https for loopback."""
    opened = RegistryClient(host, AccessOptions(Credentials("u", "p"), plain_http))
    if secure:
        opened.root = parse_url(f"https://{host}/v2/", "it")
    try:
        yield opened, Ranges(opened)
    finally:
        await opened.aclose()


async def check(opened: RegistryClient, ranges: Ranges) -> None:
    """A document with httpx, two ranges with the range reader."""
    assert (await opened.ask("it", "GET", opened.url("doc"), SCOPE)).body == b"document"
    for start, end in ((0, 200_000), (5, 17)):
        async with ranges.open("blob B", "blob", SCOPE, DIGEST, len(BLOB), start, end) as body:
            assert await body.receive_exactly(end - start) == BLOB[start:end]


async def test_both_ways_trust_the_systems_cas(authority: trustme.CA, trusted: None) -> None:
    """SSL_CERT_FILE applies to httpx and to ranges. Connections are kept."""
    context = server_context(authority, "127.0.0.1")
    async with serving(Server(registry), context) as server, client(server.host, secure=True) as (opened, ranges):
        await check(opened, ranges)
    assert server.connections == 2


@pytest.mark.parametrize("names", [("127.0.0.1",), ("other.test",)])
async def test_a_certificate_that_does_not_verify(
    names: tuple[str, ...], authority: trustme.CA, request: pytest.FixtureRequest
) -> None:
    """An unknown CA, another name: an error at once, with a hint. Nothing is sent."""
    if names == ("other.test",):
        request.getfixturevalue("trusted")
    context = server_context(authority, *names)
    async with serving(Quiet(registry), context) as server, client(server.host, secure=True) as (opened, ranges):
        with pytest.raises(BadAnswer, match=r"certificate of 127\.0\.0\.1 does not verify.*SSL_CERT_FILE"):
            await opened.ask("it", "GET", opened.url("doc"), SCOPE)
        with pytest.raises(BadAnswer, match=r"certificate of 127\.0\.0\.1 does not verify.*SSL_CERT_FILE"):
            async with ranges.open("blob B", "blob", SCOPE, DIGEST, len(BLOB), 0, 1):
                pass
    assert not server.requests
    assert server.connections == 2


async def test_no_tls_where_tls_is_expected(autojump_clock: trio.testing.MockClock) -> None:
    """A plain server on the port of a secure registry."""
    async with serving(Garbled(registry)) as server, client(server.host, secure=True) as (opened, ranges):
        with pytest.raises(Unreachable, match=r"TLS|SSL"):
            async with ranges.open("blob B", "blob", SCOPE, DIGEST, len(BLOB), 0, 1):
                pass
        with pytest.raises(Unreachable):
            await opened.ask("it", "GET", opened.url("doc"), SCOPE)


class Quiet(Server):
    """A server whose handshakes may fail."""

    async def handle(self, stream: trio.abc.Stream) -> None:
        """The test expects a broken handshake."""
        self.connections += 1
        try:
            assert isinstance(stream, trio.SSLStream)
            await stream.do_handshake()
        except trio.BrokenResourceError:
            return
        raise AssertionError("the client trusts anybody")


class Garbled(Server):
    """Answers a ClientHello in plain text."""

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Then closes the connection."""
        await stream.receive_some(10)
        await stream.send_all(reply(400, b"The plain HTTP request was sent to HTTPS port"))
        await stream.aclose()


async def test_a_plain_proxy_is_asked_for_whole_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """http through HTTP_PROXY: absolute URLs, the proxy's own credentials, and the name is not resolved locally."""
    async with serving(Server(registry)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@{proxy.host}")
        async with client(HOST, plain_http=True) as (opened, ranges):
            await check(opened, ranges)
    assert [request.target for request in proxy.requests] == [f"http://{HOST}/v2/doc"] + [f"http://{HOST}/v2/blob"] * 2
    assert {request.headers["host"] for request in proxy.requests} == {HOST}
    assert {request.headers["proxy-authorization"] for request in proxy.requests} == {"Basic bWU6cEBzcw=="}


async def test_a_secure_registry_through_a_proxy(authority: trustme.CA, trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECT. The certificate is the registry's, and the proxy sees neither URL nor credentials."""
    async with serving(Server(registry), server_context(authority, HOST)) as server:
        async with serving(Proxy([], server.port)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:pw@{proxy.host}")
            async with client(HOST) as (opened, ranges):
                await check(opened, ranges)
    assert [(request.method, request.target) for request in proxy.requests] == [("CONNECT", f"{HOST}:443")] * 2
    assert {request.headers["proxy-authorization"] for request in proxy.requests} == {"Basic bWU6cHc="}
    assert all("proxy-authorization" not in request.headers for request in server.requests)


async def test_an_https_proxy(authority: trustme.CA, trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS within TLS."""
    async with serving(Server(registry), server_context(authority, HOST)) as server:
        async with serving(Proxy([], server.port), server_context(authority, "127.0.0.1")) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"https://{proxy.host}")
            async with client(HOST) as (opened, ranges):
                await check(opened, ranges)
    assert len(proxy.requests) == 2


async def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes at once, and names the proxy."""
    async with serving(Server(lambda _: reply(407, b"who are you?"))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        async with client(HOST) as (opened, ranges):
            with pytest.raises(BadAnswer, match=f"the proxy {proxy.host} refuses a connection to {HOST}:443: it answers 407"):
                async with ranges.open("blob B", "blob", SCOPE, DIGEST, len(BLOB), 0, 1):
                    pass
            with pytest.raises(BadAnswer, match="the proxy refuses"):
                await opened.ask("it", "GET", opened.url("doc"), SCOPE)


async def test_no_proxy_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is direct, whatever HTTP_PROXY says."""
    async with serving(Server([])) as proxy, serving(Server(registry)) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        async with client(server.host) as (opened, ranges):
            await check(opened, ranges)
    assert not proxy.requests


async def test_certifi_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx's own CAs are never loaded, not even for plain http."""
    monkeypatch.setattr("certifi.where", lambda: pytest.fail("certifi was asked"))
    async with serving(Server(registry)) as server, client(server.host) as (opened, ranges):
        await check(opened, ranges)


async def test_a_stalled_handshake_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """A server that accepts and sends nothing."""
    start = trio.current_time()
    async with serving(Server(lambda _: Reply(b"", "silence"))) as server, client(server.host, secure=True) as (_, ranges):
        with pytest.raises(Unreachable):
            async with ranges.open("blob B", "blob", SCOPE, DIGEST, len(BLOB), 0, 1):
                pass
    assert trio.current_time() - start <= 31
