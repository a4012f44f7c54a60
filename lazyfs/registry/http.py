"""httpx, for everything but blob bytes: one request, one complete response of bounded size.

A head that httpx rejects but Go's clients accept is read by plain.py, and so are such chunked bodies.

httpx 0.28 under trio leaks connections of its pool if requests are cancelled while others wait for one, until no request gets
any. So a client with a cancelled request is retired: later requests get a new client, and the old one is closed when its last
request has ended.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple

import h11
import httpx
import trio

from lazyfs.errors import BadAnswer, Unreachable
from lazyfs.registry.encoding import inflated
from lazyfs.registry.plain import exchange_plainly
from lazyfs.registry.proxy import Proxies, Proxy
from lazyfs.registry.retry import PROMPTLY
from lazyfs.registry.tls import system_context
from lazyfs.registry.url import Url

MAX_CONNECTIONS: Final = 16
MAX_ERROR: Final = 64 << 10
"""Bytes that are read of a response that only explains an error."""

SETTLING: Final = 300.0
"""Seconds for a registry to respond to an upload: it may hash or copy gigabytes before it does."""

# Each bounds one step on the wire, not the request: the caller has a deadline for that.
_TIMEOUT = httpx.Timeout(20.0, connect=10.0, pool=None)
_UPLOAD_TIMEOUT = httpx.Timeout(20.0, connect=10.0, read=SETTLING, pool=None)


class Response(NamedTuple):
    """A complete response, or the beginning of one that is not a success."""

    url: Url
    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes


class Http:
    """A connection pool that survives cancellation."""

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies
        self._clients = _Clients()

    async def exchange(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        limit: int,
        content: bytes | AsyncIterator[bytes] = b"",
    ) -> Response:
        """Send one request, without redirects or retries.

        `limit`: maximum bytes of a success's body, also after inflating; 0: only status and headers are wanted. Of an unwanted
        body, including that of an error, the response has what arrived promptly, at most MAX_ERROR bytes. Raises Unreachable,
        also if a wanted body breaks off, and BadAnswer if it is too long. Cancelled: the response is lost, and the server may
        have processed the request.
        """
        proxy = self._proxies.for_url(url)
        if url.basic and "Authorization" not in headers:
            headers = {**headers, "Authorization": url.basic}
        outcome = await self._through_httpx(method, url, headers, limit, content, proxy)
        if isinstance(outcome, Response):
            return outcome
        assert isinstance(content, bytes)
        head, data = await exchange_plainly(method, url, headers, content, lambda status: _bound(status, limit), proxy, outcome)
        most, is_wanted = _bound(head.status, limit)
        if is_wanted and len(data) > most:
            raise _too_long(url, limit)
        return await _answer(url, head.status, head.headers, data, limit)

    async def _through_httpx(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        limit: int,
        content: bytes | AsyncIterator[bytes],
        proxy: Proxy | None,
    ) -> Response | BadAnswer | Unreachable:
        """See `exchange`. Returns an error if plain.py may be able to read the head or the chunked body."""
        clients = self._clients
        clients.users += 1
        seasoned = clients.answers > 0
        answered = in_chunks = False
        try:
            client = clients.get(url.scheme, proxy)
            extensions = _as_spelled(url, proxy)
            timeout = _TIMEOUT if isinstance(content, bytes) else _UPLOAD_TIMEOUT
            async with client.stream(
                method, str(url), headers=headers, content=content, timeout=timeout, extensions=extensions
            ) as response:
                # The users of a header decide what its bytes mean; as Latin-1, all of them survive.
                response.headers.encoding = "latin-1"
                answered = True
                in_chunks = "transfer-encoding" in response.headers
                body = await self._read(response, clients, url, limit)
            clients.answers += 1
            return await _answer(url, response.status_code, response.headers, body, limit)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            found = _error(url, error, in_body=answered)
            if not _breaks_grammar(error) or not (in_chunks if answered else isinstance(found, BadAnswer)):
                raise found from error
            # The connection may have been out of step: an earlier response had too much, such as a body for HEAD. Go drops such
            # a connection.
            self._retire(clients)
            if not isinstance(content, bytes):
                raise (Unreachable(found.message) if seasoned else found) from error
            return found
        except BadAnswer:
            raise
        except BaseException:  # cancelled, alone or in a group
            self._retire(clients)
            raise
        finally:
            clients.users -= 1
            if clients.retired and not clients.users:
                await clients.aclose()

    async def _read(self, response: httpx.Response, clients: _Clients, url: Url, limit: int) -> bytes:
        most, is_wanted = _bound(response.status_code, limit)
        body = bytearray()
        # Leaving the loop would abandon httpx's nested generators to the garbage collector; cancellation unwinds them.
        with trio.move_on_after(math.inf if is_wanted else PROMPTLY) as reading:
            try:
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > most:
                        reading.cancel()
            except httpx.TransportError:
                if is_wanted:
                    raise
        if reading.cancelled_caught:
            self._retire(clients)
        if is_wanted and len(body) > most:
            raise _too_long(url, limit)
        return bytes(body[:most])

    def _retire(self, clients: _Clients) -> None:
        clients.retired = True
        if self._clients is clients:
            self._clients = _Clients()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._clients.aclose()


class _Clients:
    """httpx clients, one per route: direct or through a proxy, with TLS or without."""

    def __init__(self) -> None:
        self.users = 0
        self.answers = 0
        self.retired = False
        self._found: dict[tuple[str, Proxy | None], httpx.AsyncClient] = {}

    def get(self, scheme: str, proxy: Proxy | None) -> httpx.AsyncClient:
        client = self._found.get((scheme, proxy))
        if client is None:
            secure = scheme == "https" or (proxy is not None and proxy.url.scheme == "https")
            # A client for plain http gets an empty context, which saves reading the system's CAs.
            context = system_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client = self._found[scheme, proxy] = httpx.AsyncClient(
                verify=context,
                trust_env=False,
                timeout=_TIMEOUT,
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
                headers={"User-Agent": "lazyfs", "Accept-Encoding": "identity"},
                # No cookies: a registry with a web interface takes a client that sends one for a browser, and refuses writes.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                proxy=None if proxy is None else _proxy(proxy, context),
            )
        return client

    async def aclose(self) -> None:
        with trio.move_on_after(1, shield=True):
            for client in self._found.values():
                await client.aclose()


def _proxy(proxy: Proxy, context: ssl.SSLContext) -> httpx.Proxy:
    auth = (proxy.user, proxy.password) if proxy.user else None
    return httpx.Proxy(str(proxy.url), auth=auth, ssl_context=context if proxy.url.scheme == "https" else None)


def _too_long(url: Url, limit: int) -> BadAnswer:
    return BadAnswer(f"{url.authority} sends over {limit} bytes where no more are allowed")


def _bound(status: int, limit: int) -> tuple[int, bool]:
    """How many bytes of a response's body are read, and whether it is wanted."""
    return (limit, True) if status < 300 and limit else (MAX_ERROR, False)


async def _answer(url: Url, status: int, headers: Mapping[str, str], body: bytes, limit: int) -> Response:
    if _bound(status, limit)[1]:
        return Response(url, status, headers, await inflated(body, headers.get("content-encoding", ""), limit, url.authority))
    return Response(url, status, headers, body[:MAX_ERROR])


def _as_spelled(url: Url, proxy: Proxy | None) -> dict[str, bytes]:
    """Makes httpx request the exact characters of `url`, some of which it would escape: a signature covers them.

    Not through a tunnel: httpcore would send them to the proxy, too.
    """
    if proxy is None:
        return {"target": url.target.encode("ascii")}
    return {} if url.scheme == "https" else {"target": str(url).encode("ascii")}


def _error(url: Url, error: Exception, *, in_body: bool) -> Unreachable | BadAnswer:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BadAnswer(
                f"the certificate of {url.host} does not verify: {cause.verify_message}",
                hint="If the registry has a CA of its own, add it to the system's or name it in SSL_CERT_FILE",
            )
    if isinstance(error, httpx.InvalidURL) or (_breaks_grammar(error) and not in_body):
        return BadAnswer(f"{url.authority} breaks HTTP: {error}")
    if isinstance(error, httpx.ProxyError):
        return BadAnswer(f"the proxy refuses a connection to {url.authority}: {error}")
    if isinstance(error, httpx.RemoteProtocolError) and in_body:
        return Unreachable(f"{url.authority} broke off in the middle of its answer")
    return Unreachable(f"cannot reach {url.authority}: {str(error) or type(error).__name__}")


def _breaks_grammar(error: Exception) -> bool:
    """Whether h11 has rejected what a server sent.

    A head that breaks off is an error of httpcore, without h11 as its cause. In a body, h11 reports a break and invalid chunks
    alike; the latter are rare.
    """
    return any(isinstance(cause, h11.RemoteProtocolError) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
