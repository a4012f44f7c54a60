"""Authorization for one registry: none, Basic, or a bearer token for each scope (the distribution project's token flow).

Nothing is sent before the registry has asked for it. What it has accepted is sent with the next requests.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import msgspec
import trio

from lazyfs.errors import BadAnswer, Unauthorized, Unreachable, show
from lazyfs.format.foreign_json import decode, fields
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.challenge import Challenge, parse_challenges
from lazyfs.registry.credentials import Credentials, configured
from lazyfs.registry.holdoff import shared_holdoffs
from lazyfs.registry.http import Http, Response
from lazyfs.registry.redirects import REDIRECTS, redirected
from lazyfs.registry.retry import is_transient
from lazyfs.registry.url import Url, escaped, parse_url

Scope = tuple[str, ...]
"""`repository:NAME:ACTIONS`, one or more."""

_MAX_ANSWER: Final = 1 << 20
_MAX_TOKEN: Final = 32 << 10
_DEFAULT_LIFE: Final = 60.0
_LONGEST_LIFE: Final = 1e9
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")
_MARGIN: Final = 0.1
"""The last fraction of a token's life, in which it is not used: it must still be valid when it arrives."""


class _Token(NamedTuple):
    header: str
    until: float

    def __repr__(self) -> str:
        return "_Token(…)"


class Tokens:
    """The authorization that one registry accepts."""

    def __init__(self, host: str, root: Url, options: AccessOptions, http: Http) -> None:
        self._host = host
        self._root = root
        self._options = options
        self._http = http
        self._basic = ""
        self._bearer: dict[Scope, _Token] = {}
        self._renewing = trio.Lock()

    def header(self, scope: Scope) -> str:
        """The Authorization header to send; may be empty."""
        token = self._bearer.get(scope)
        if token is not None and trio.current_time() < token.until:
            return token.header
        return self._basic

    async def renew(self, scope: Scope, challenge: str, refused: str) -> None:
        """The registry answered `refused` with 401 and this WWW-Authenticate. Afterwards, `header` returns something else.

        Raises Unauthorized, Unreachable, BadAnswer; UsageError for an invalid config.json. Cancelled: nothing has changed.
        """
        async with self._renewing:
            if self.header(scope) != refused:
                return  # another request was faster
            challenges = parse_challenges(challenge)
            credentials = self._options.creds or await trio.to_thread.run_sync(configured, self._host)
            for found in challenges:
                if found.scheme == "bearer":
                    self._bearer[scope] = await self._fetch(found, scope, credentials)
                    return
            for found in challenges:
                if found.scheme == "basic":
                    if credentials is None or credentials.basic == refused:
                        raise self._unauthorized(credentials)
                    self._basic = credentials.basic
                    return
            raise Unauthorized(f"{self._host} wants authentication, but neither Basic nor Bearer")

    async def _fetch(self, challenge: Challenge, scope: Scope, credentials: Credentials | None) -> _Token:
        realm = parse_url(escaped(challenge.parameters.get("realm", "")), f"the token realm of {self._host}", may_log_in=True)
        if realm.scheme != "https" and self._root.scheme == "https":
            raise BadAnswer(f"{self._host} wants its token fetched without https from {realm.authority}")
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        query += [("scope", one) for one in scope]
        requested = trio.current_time()
        answer = await self._ask(realm, query, credentials)
        if is_transient(answer.status):
            raise Unreachable(f"{realm.authority}, which gives tokens for {self._host}, answers {answer.status}")
        if answer.status in {400, 401, 403}:
            raise self._unauthorized(credentials)
        found = _fields(answer.body) if answer.status == 200 else {}
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str) or len(token) > _MAX_TOKEN or not _TOKEN.match(token):
            raise BadAnswer(
                f"{answer.url.authority}, which gives tokens for {self._host}, answers {answer.status} without a token"
            )
        life = found.get("expires_in")
        life = min(max(life, _DEFAULT_LIFE), _LONGEST_LIFE) if isinstance(life, int | float) else _DEFAULT_LIFE
        return _Token(f"Bearer {token}", requested + life * (1 - _MARGIN))

    async def _ask(self, realm: Url, query: list[tuple[str, str]], credentials: Credentials | None) -> Response:
        if credentials is not None and credentials.identity_token:
            form = [("grant_type", "refresh_token"), ("refresh_token", credentials.identity_token), ("client_id", "lazyfs")]
            form += [pair for pair in query if pair[0] != "scope"]
            form.append(("scope", " ".join(value for name, value in query if name == "scope")))
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return await self._follow("POST", realm, headers, urlencode(form).encode())
        headers = {} if credentials is None else {"Authorization": credentials.basic}
        joint = "&" if "?" in realm.target else "?"
        return await self._follow("GET", realm._replace(target=realm.target + joint + urlencode(query)), headers, b"")

    async def _follow(self, method: str, url: Url, headers: dict[str, str], content: bytes) -> Response:
        """The response, after redirects. Another host gets neither the password nor the identity token."""
        what = f"the token realm of {self._host}"
        holdoffs = shared_holdoffs()
        visited = [url]
        while True:
            if holdoffs.applies_to(url):
                await holdoffs.wait(what, url)
            answer = await self._http.exchange(method, url, headers, _MAX_ANSWER, content)
            if answer.status not in REDIRECTS:
                holdoffs.note(what, url, answer.status, answer.headers.get("retry-after", ""))
                return answer
            target = redirected(what, answer.status, url, answer.headers.get("location", ""), visited)
            if answer.status not in {307, 308}:
                method, content = "GET", b""  # what browsers and Go do with a form
            if not _is_same_place(url, target):
                if content:
                    raise BadAnswer(
                        f"{what}, {url.authority}, redirects to {target.authority}: the identity token is not sent to another host",
                        hint="Log in with a user name and a password instead",
                    )
                headers = {}  # and none are sent to later targets either
            url = target

    def _unauthorized(self, credentials: Credentials | None) -> Unauthorized:
        if credentials is None:
            return Unauthorized(f"{self._host} wants credentials, and there are none", hint="Run docker login, or use --creds")
        return Unauthorized(f"{self._host} refuses the credentials of {show(credentials.user or 'the identity token')}")


def _is_same_place(url: Url, target: Url) -> bool:
    """Whether credentials for `url` may be sent to `target`: the same server, or the same host with TLS instead of plain http."""
    return target.origin == url.origin or (target.host == url.host and (url.scheme, target.scheme) == ("http", "https"))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        raw = decode(body)
    except msgspec.DecodeError:
        return {}
    return fields(raw, ("token", "access_token", "expires_in")) if isinstance(raw, dict) else {}
