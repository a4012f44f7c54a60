"""Byte ranges of blobs over Connection: redirects, authorisation, and the check that each response matches the request.

A registry in front of a cloud store redirects to a signed URL. That URL is remembered for the blob, because asking for it again
for each range would double the requests. When it has expired, the store refuses, and the registry is asked again.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Final

import trio

from lazyfs.errors import HeldOff, RangeIgnored, SourceError, Unreachable
from lazyfs.format.digest import Digest
from lazyfs.registry.body import Body
from lazyfs.registry.client import RegistryClient, error_for_status
from lazyfs.registry.connection import Connection
from lazyfs.registry.head import Head
from lazyfs.registry.holdoff import MAX_HOLDOFF
from lazyfs.registry.range_response import MAX_SKIP, RangeRequest, RangeResponse, accept
from lazyfs.registry.rangeless import Rangeless, may_refuse_the_range
from lazyfs.registry.redirects import REDIRECTS, redirected
from lazyfs.registry.retry import PROMPTLY, TRIES, TryAgain, is_transient, with_retries
from lazyfs.registry.tokens import Scope
from lazyfs.registry.url import Url

MAX_RANGES: Final = 48
"""Ranges open at a time, and so connections in use: enough for many readers (fetch/), to which the background gives way."""
CAUTIOUS: Final = 8
"""The same for a server that has refused a request because there were too many."""
_TOO_MANY: Final = {429, 503}
MAX_AHEAD: Final = 8
"""Connections opened before a range is requested: an image's TOCs are read this many at a time."""
_HOLDOFF_TIMEOUT: Final = 2 * MAX_HOLDOFF + 5.0
"""Seconds in total to wait for pauses that hosts ask for: two of the longest, as for documents (holdoff.py)."""
_MAX_SIGNED: Final = 4096
_SMALL_BODY: Final = 16 << 10
"""The body of an error is read up to this size to keep the connection. A longer, broken or slow one costs the connection."""


class _Broken(Unreachable):
    """500 for a range: a server in trouble, or one that fails because of the Range header."""


class Ranges:
    """Ranges of the blobs of one repository."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._signed: dict[Digest, Url] = {}
        self._rangeless = Rangeless()
        self._slots = trio.Semaphore(MAX_RANGES)
        self._withhold = 0
        """Slots in use that will not be released."""
        self._is_cautious = False

    async def connect_ahead(self, count: int) -> None:
        """Open connections to the registry for the next `count` ranges: that saves round trips, more of them with TLS.

        Cancelled: connections that are open stay.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(min(count, MAX_AHEAD)):
                nursery.start_soon(self._connect_ahead)

    async def _connect_ahead(self) -> None:
        url = self._client.root
        with suppress(SourceError):  # the request for the range tries again, and gets the error
            connection = await self._client.pool.acquire(url, fresh=True)
            connection.used = True  # it is idle meanwhile: if the server closes it, that is not a failed request
            self._client.pool.release(url, connection, reusable=True)

    def open(
        self,
        what: str,
        path: str,
        scope: Scope,
        digest: Digest,
        size: int,
        start: int,
        end: int,
        deadline: float = math.inf,
    ) -> AbstractAsyncContextManager[Body]:
        """Bytes `[start, end)` of the blob at `path`; see ImageSource.open_range. `what` names the blob in errors."""
        return self.open_url(what, self._client.url(path), scope, digest, size, start, end, deadline)

    @asynccontextmanager
    async def open_url(
        self, what: str, url: Url, scope: Scope, digest: Digest, size: int, start: int, end: int, deadline: float
    ) -> AsyncIterator[Body]:
        """As `open`, of the blob at `url`, which need not be in the registry. Without a scope no token and no password is sent."""
        request = RangeRequest(what, url, scope, digest, size, start, end, start, deadline)
        # Waited for outside of the deadline: a busy server is not an unresponsive one. Not awaited if one is free: that would
        # cost a pass of the event loop.
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        try:
            try:
                response = await with_retries(what, partial(self._try, request))
            except Unreachable as error:
                response = await self._recover(request, error)
            body = Body(request, response, self._ask_again, self._client.pool)
            try:
                yield body
            finally:
                body.close()
        finally:
            if self._withhold:
                self._withhold -= 1
            else:
                self._slots.release()

    async def _ask_again(self, request: RangeRequest) -> RangeResponse:
        try:
            return await with_retries(request.what, partial(self._try, request))
        except Unreachable as error:
            return await self._recover(request, error)

    async def _recover(self, request: RangeRequest, error: Unreachable) -> RangeResponse:
        """Try what is left after the retries have ended in `error`. Raises it if there is nothing."""
        if isinstance(error, _Broken):
            return await self._try_whole(request, error)
        latest = min(trio.current_time() + _HOLDOFF_TIMEOUT, request.deadline, trio.current_effective_deadline())
        for _ in range(TRIES):
            # A pause may be longer than one request waits, but not longer than the caller does.
            if not isinstance(error, HeldOff) or error.until > latest:
                break
            await trio.sleep_until(error.until + random.uniform(0.0, 1.0))  # not all at once
            try:
                return await with_retries(request.what, partial(self._try, request))
            except Unreachable as raised:
                error = raised
        raise error

    def distrust(self, digest: Digest) -> None:
        """See ImageSource."""
        self._signed.pop(digest, None)
        self._client.pool.close()  # the one that delivered the bytes is idle by now

    async def _try(self, request: RangeRequest, *, whole: bool = False) -> RangeResponse | TryAgain:
        """`whole`: request all of the blob, without a range."""
        if self._rangeless.includes(request.digest):
            if request.first > MAX_SKIP:
                raise RangeIgnored(f"{request.what}: {request.url.authority} refuses ranges of it")
            whole = True
        own = request.url.origin
        url = self._signed.get(request.digest, request.url)
        remembered = url is not request.url
        renewed = False
        visited = [url]
        while True:
            authorization = self._client.tokens.header(request.scope) if request.scope and url.origin == own else ""
            try:
                connection, head = await self._exchange(url, request, authorization, ranged=not whole)
            except Unreachable:
                if remembered:  # the registry may redirect to a store that can be reached
                    self._forget(request.digest, url)
                raise
            try:
                if head.status in {200, 206}:
                    response = accept(request, url, connection, head)
                    if url is not request.url:
                        self._remember(request.digest, url)
                    return response
                reusable = await _drain(connection, head)
            except BaseException:
                self._client.pool.release(url, connection, reusable=False)
                raise
            self._client.pool.release(url, connection, reusable=reusable)
            if head.status == 401 and request.scope and url.origin == own and not renewed:
                await self._client.tokens.renew(request.scope, head.headers.get("www-authenticate", ""), authorization)
                renewed = True
            elif head.status in REDIRECTS:
                url = redirected(request.what, head.status, url, head.headers.get("location", ""), visited)
            elif is_transient(head.status):
                self._note_refusal(head.status)
                self._client.holdoffs.note(request.what, url, head.status, head.headers.get("retry-after", ""))
                kind = _Broken if head.status == 500 and not whole else Unreachable
                return TryAgain(kind(f"{request.what}: {url.authority} answers {head.status}"))
            elif remembered and 400 <= head.status < 500:
                # Stores report an expired signature in different ways: 401, 403, 404, and Google's 400.
                self._forget(request.digest, url)
                url, remembered, visited = request.url, False, [request.url]
            elif not whole and may_refuse_the_range(head.status):
                return await self._try_whole(request, error_for_status(request.what, url, head.status))
            else:
                raise error_for_status(request.what, url, head.status)

    async def _try_whole(self, request: RangeRequest, error: SourceError) -> RangeResponse:
        """The range request got `error`; request the whole blob."""
        async with self._rangeless.trial(request.digest, error):
            outcome = await self._try(request, whole=True)
            if isinstance(outcome, TryAgain):
                raise outcome.error
            return outcome

    def _note_refusal(self, status: int) -> None:
        # A server that limits connections or requests would refuse as many again, and a read that is refused each time fails.
        if status in _TOO_MANY and not self._is_cautious:
            self._is_cautious = True
            self._withhold = MAX_RANGES - CAUTIOUS
            while self._withhold and self._slots.value:
                self._slots.acquire_nowait()
                self._withhold -= 1

    async def _exchange(self, url: Url, request: RangeRequest, authorization: str, *, ranged: bool) -> tuple[Connection, Head]:
        """The caller releases the connection. `ranged`: request the range, not the whole blob."""
        if self._client.holdoffs.applies_to(url):
            await self._client.holdoffs.wait(request.what, url)
        connection = await self._client.pool.acquire(url)
        stale = connection.used
        try:
            return connection, await connection.exchange(_request(url, request, authorization, connection, ranged=ranged))
        except Unreachable:
            self._client.pool.release(url, connection, reusable=False)
            if not stale:
                raise
        except BaseException:
            self._client.pool.release(url, connection, reusable=False)
            raise
        # The server had closed the idle connection: that is not a failure of this request.
        connection = await self._client.pool.acquire(url, fresh=True)
        try:
            return connection, await connection.exchange(_request(url, request, authorization, connection, ranged=ranged))
        except BaseException:
            self._client.pool.release(url, connection, reusable=False)
            raise

    def _remember(self, digest: Digest, url: Url) -> None:
        if len(self._signed) >= _MAX_SIGNED:
            del self._signed[next(iter(self._signed))]
        self._signed[digest] = url

    def _forget(self, digest: Digest, url: Url) -> None:
        if self._signed.get(digest) == url:  # else another request has a newer one already
            del self._signed[digest]


def _request(url: Url, request: RangeRequest, authorization: str, connection: Connection, *, ranged: bool) -> bytes:
    proxy = connection.forward_proxy
    lines = [
        f"GET {url if proxy else url.target} HTTP/1.1",
        f"Host: {url.authority}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "User-Agent: lazyfs",
    ]
    if ranged:
        lines.append(f"Range: bytes={request.start}-{request.end - 1}")
    if authorization or url.basic:
        lines.append(f"Authorization: {authorization or url.basic}")
    if proxy and proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _drain(connection: Connection, head: Head) -> bool:
    """Read the body of an unwanted response, if that is cheap. Returns whether the connection can be used again."""
    left = 0 if head.status in {204, 304} else head.length
    if not head.keep_alive or left is None or left > _SMALL_BODY:
        return False
    view = memoryview(bytearray(left))
    with trio.move_on_after(PROMPTLY), suppress(Unreachable):
        while left:
            left -= (got := await connection.receive_into(view[:left]))
            if not got:
                break
    return not left
