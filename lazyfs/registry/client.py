"""Authorised requests to one registry: documents, small blobs, the steps of an upload."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cached_property, partial

import msgspec

from lazyfs.errors import BadAnswer, NotFound, SourceError, Unauthorized, Unreachable
from lazyfs.format.foreign_json import decode_as
from lazyfs.registry.access import AccessOptions, api_url
from lazyfs.registry.holdoff import Holdoffs, shared_holdoffs, with_holdoffs
from lazyfs.registry.http import Http, Response
from lazyfs.registry.pool import Pool
from lazyfs.registry.proxy import from_environment
from lazyfs.registry.redirects import REDIRECTS, redirected
from lazyfs.registry.retry import DEADLINE, TRIES, TryAgain, is_transient, with_retries
from lazyfs.registry.tls import system_context
from lazyfs.registry.tokens import Scope, Tokens
from lazyfs.registry.url import Url

Content = bytes | Callable[[], AsyncIterator[bytes]]
"""A request's body. If callable, it is called for each try."""


class RegistryClient:
    """A client of one registry: its tokens and connections."""

    def __init__(self, host: str, options: AccessOptions) -> None:
        proxies = from_environment()
        self.host = host
        self.root = api_url(host, options)
        self.http = Http(proxies)
        self.tokens = Tokens(host, self.root, options, self.http)
        self.pool = Pool(proxies, system_context)

    @cached_property
    def holdoffs(self) -> Holdoffs:
        """Pauses that hosts have asked for, shared by all clients. Only within trio."""
        return shared_holdoffs()

    def url(self, path: str) -> Url:
        """The URL of `path` below /v2/."""
        return self.root._replace(target=self.root.target + path)

    async def ask(
        self,
        what: str,
        method: str,
        url: Url,
        scope: Scope,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content = b"",
        limit: int = 0,
        deadline: float = DEADLINE,
        tries: int = TRIES,
    ) -> Response:
        """The response to a request, whatever its status, after redirects. `what` names the object in errors; `limit` is as for
        Http.exchange.

        `deadline` bounds the time to the response, but not a pause that the host asks for. Raises Unauthorized, Unreachable,
        BadAnswer. Cancelled: the server may have processed the request.
        """
        attempt = partial(self._try, what, method, url, scope, headers or {}, content, limit)
        return await with_holdoffs(partial(with_retries, what, attempt, deadline=deadline, tries=tries))

    async def aclose(self) -> None:
        """Close all connections."""
        self.pool.close()
        await self.http.aclose()

    async def _try(
        self, what: str, method: str, url: Url, scope: Scope, headers: Mapping[str, str], content: Content, limit: int
    ) -> Response | TryAgain:
        renewed = False
        visited = [url]
        while True:
            own = url.origin == self.root.origin
            authorization = self.tokens.header(scope) if own else ""
            sent = {**headers, "Authorization": authorization} if authorization else headers
            if self.holdoffs.applies_to(url):
                await self.holdoffs.wait(what, url)
            answer = await self.http.exchange(method, url, sent, limit, content if isinstance(content, bytes) else content())
            if answer.status == 401 and own and not renewed:
                await self.tokens.renew(scope, answer.headers.get("www-authenticate", ""), authorization)
                renewed = True
            elif answer.status in REDIRECTS and _may_follow(method, answer.status, content):
                url = redirected(what, answer.status, url, answer.headers.get("location", ""), visited)
            elif is_transient(answer.status):
                self.holdoffs.note(what, url, answer.status, answer.headers.get("retry-after", ""))
                return TryAgain(Unreachable(f"{what}: {url.authority} answers {answer.status}{_reason(answer.body)}"))
            else:
                return answer


def _may_follow(method: str, status: int, content: Content) -> bool:
    """307 and 308 repeat any request. A large body is not sent before its destination is known."""
    return method in {"GET", "HEAD"} or (status in {307, 308} and isinstance(content, bytes))


def error_for_status(what: str, url: Url, status: int, body: bytes = b"") -> SourceError:
    """The error for a response with an unexpected status."""
    text = f"{what}: {url.authority} answers {status}{_reason(body)}"
    if status == 404:
        return NotFound(text)
    if status in {401, 403}:
        return Unauthorized(text, hint="Check the name, and the credentials (docker login or --creds)")
    return BadAnswer(text)


class _Reason(msgspec.Struct):
    code: str = ""


class _Reasons(msgspec.Struct):
    errors: list[_Reason] = []


def _reason(body: bytes) -> str:
    """The error codes of the distribution specification, in parentheses. Free text of the registry is not quoted in messages."""
    try:
        codes = [reason.code for reason in decode_as(body, _Reasons).errors[:3]]
    except msgspec.DecodeError:
        return ""
    clean = [code for code in codes if re.fullmatch(r"[A-Z_]{1,40}", code)]
    return f" ({', '.join(clean)})" if clean else ""
