"""Bearer tokens: fetched on demand, kept while they are valid, never sent to the wrong host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import trio.testing

from lazyfs.errors import BadAnswer, SourceError, Unauthorized, UsageError
from lazyfs.registry import tokens
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.credentials import Credentials
from lazyfs.registry.url import Url, parse_url
from tests.conftest import LogWatch
from tests.unit.registry.scripted import Request, Server, reply, serving

PULL = ("repository:a/b:pull",)
PUSH = ("repository:a/b:pull,push", "repository:c:pull")
ME = Credentials("me", "secret")


class Guarded:
    """A registry and its token server: `accepted` says which tokens are valid."""

    def __init__(self) -> None:
        self.tokens = Server(self.token)
        self.registry = Server(self.content)
        self.issued = 0
        self.accepted: set[str] = set()
        self.expires_in: float | None = 300
        self.challenge = ""

    def token(self, request: Request) -> bytes:
        """Always a new token."""
        self.issued += 1
        self.accepted.add(f"Bearer T{self.issued}")
        return reply(200, json.dumps({"token": f"T{self.issued}", "expires_in": self.expires_in}).encode())

    def content(self, request: Request) -> bytes:
        """Only with an accepted token."""
        if request.headers.get("authorization") in self.accepted:
            return reply(200, b"content")
        challenge = self.challenge or f'Bearer realm="http://{self.tokens.host}/token?x=1",service="the registry",scope="other"'
        return reply(401, b"no", www_authenticate=challenge)


@asynccontextmanager
async def guarded(creds: Credentials | None = ME) -> AsyncIterator[tuple[Guarded, RegistryClient]]:
    """Both servers, and a client."""
    both = Guarded()
    async with serving(both.tokens), serving(both.registry):
        client = RegistryClient(both.registry.host, AccessOptions(creds))
        try:
            yield both, client
        finally:
            await client.aclose()


async def get(client: RegistryClient, scope: tuple[str, ...] = PULL) -> int:
    """The status of one request."""
    return (await client.ask("it", "GET", client.url("x"), scope)).status


def query(request: Request) -> dict[str, list[str]]:
    """The query of a request."""
    return parse_qs(urlsplit(request.target).query)


async def test_a_token_is_fetched_once_a_scope() -> None:
    """With the realm's own query, the service, the scopes and Basic credentials."""
    async with guarded() as (both, client):
        for scope in (PULL, PULL, PUSH, PUSH, PULL):
            assert await get(client, scope) == 200
    assert both.issued == 2
    assert query(both.tokens.requests[0]) == {"x": ["1"], "service": ["the registry"], "scope": list(PULL)}
    assert query(both.tokens.requests[1])["scope"] == list(PUSH)
    assert both.tokens.requests[0].headers["authorization"] == "Basic bWU6c2VjcmV0"
    assert [request.headers.get("authorization") for request in both.registry.requests] == [
        None, "Bearer T1", "Bearer T1", None, "Bearer T2", "Bearer T2", "Bearer T1",
    ]  # fmt: skip


async def test_an_anonymous_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Docker Hub: a token without a user. `access_token` and a missing lifetime are allowed too."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    async with guarded(None) as (both, client):
        both.tokens.script = [reply(200, b'{"access_token": "A"}')]
        both.accepted = {"Bearer A"}
        assert await get(client) == 200
    assert "authorization" not in both.tokens.requests[0].headers


async def test_a_realm_with_letters_that_no_url_has() -> None:
    """Blanks and non-ASCII bytes are escaped, as in a redirect."""
    async with guarded() as (both, client):
        both.challenge = f'Bearer realm="http://{both.tokens.host}/caf\xe9 t?x=1",service="r"'
        assert await get(client) == 200
    assert both.tokens.requests[0].target.startswith("/caf%C3%A9%20t?x=1&service=r")  # the scripted server speaks UTF-8


async def test_many_at_once_fetch_one_token() -> None:
    """Ten requests with one scope, one token."""
    async with guarded() as (both, client), trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(get, client)
    assert both.issued == 1


async def test_a_token_is_renewed_before_it_expires(autojump_clock: trio.testing.MockClock) -> None:
    """After nine tenths of its life, so that it never arrives too late. Without a 401."""
    async with guarded() as (both, client):
        await get(client)
        await trio.sleep(260)
        await get(client)
        assert both.issued == 1
        await trio.sleep(20)
        await get(client)
        assert both.issued == 2


async def test_a_token_that_is_refused_is_renewed_once() -> None:
    """Revoked before its time."""
    async with guarded() as (both, client):
        await get(client)
        both.accepted.clear()
        assert await get(client) == 200
        assert both.issued == 2
        both.tokens.script = lambda _: reply(200, b'{"token": "useless"}')
        both.accepted.clear()
        assert await get(client) == 401
    assert len(both.tokens.requests) == 3


async def test_credentials_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json may change meanwhile. An invalid one is an error only when it is needed."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    async with guarded(None) as (both, client):
        both.accepted = {""}
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(UsageError, match=r"config\.json"):
            await get(client)
        (tmp_path / "config.json").write_text(json.dumps({"auths": {both.registry.host: {"username": "u", "password": "p"}}}))
        assert await get(client) == 200
    assert both.tokens.requests[0].headers["authorization"] == "Basic dTpw"


async def test_an_identity_token_is_posted() -> None:
    """OAuth 2: never in a URL, and with all scopes in one field."""
    async with guarded(Credentials("", "", "refresh me")) as (both, client):
        assert await get(client, PUSH) == 200
    (request,) = both.tokens.requests
    assert request.method == "POST"
    assert parse_qs(request.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh me"],
        "client_id": ["lazyfs"],
        "service": ["the registry"],
        "scope": [" ".join(PUSH)],
    }
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(401, b"secret"), Unauthorized),
        (reply(403), Unauthorized),
        (reply(404), BadAnswer),
        (reply(302, location="ftp://elsewhere/"), BadAnswer),
        (reply(302), BadAnswer),
        (reply(200, b"{}"), BadAnswer),
        (reply(200, b"<html>"), BadAnswer),
        (reply(200, b"\xff"), BadAnswer),
        (reply(200, b'{"token": 7}'), BadAnswer),
        (reply(200, b'{"token": "a\\r\\nX-Evil: 1"}'), BadAnswer),
        (reply(200, b'{"token": "a b"}'), BadAnswer),
        (reply(200, b'{"token": "\xc3\xa9"}'), BadAnswer),
        (reply(200, b'{"token": "' + b"a" * 40_000 + b'"}'), BadAnswer),
        (reply(200, b" " * (1 << 20) + b"{}"), BadAnswer),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
)
async def test_invalid_tokens(answer: bytes, kind: type[SourceError]) -> None:
    """An error, or a response without a token. Neither is retried, and no message contains a secret."""
    async with guarded() as (both, client):
        both.tokens.script = [answer]
        with pytest.raises(kind) as caught:
            await get(client)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"token": "T", "access_token": null}',
        b'{"token": null, "access_token": "T", "expires_in": null}',
        b'{"Token": "T", "odd": "\\ud800", "more": "\xff"}',
        b'{"token": "T", "expires_in": "300"}',
        b'{"token": "T", "expires_in": 1e999}',
        b'{"token": "T", "expires_in": ' + b"9" * 399 + b"}",
        b' \n{"access_token": "T"}\n',
    ],
)
async def test_answers_as_go_reads_them(answer: bytes) -> None:
    """What containerd and skopeo accept as a token. A lifetime that is not a number is ignored."""
    async with guarded() as (both, client):
        both.tokens.script = [reply(200, answer)]
        both.accepted = {"Bearer T"}
        assert await get(client) == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_realm_may_redirect(status: int) -> None:
    """On the same server, with the same credentials."""
    async with guarded() as (both, client):
        both.tokens.script = [reply(status, location="/elsewhere?y=1"), reply(200, b'{"token": "T"}')]
        both.accepted = {"Bearer T"}
        assert await get(client) == 200
        first, second = both.tokens.requests
    assert (second.method, second.target) == ("GET", "/elsewhere?y=1")
    assert first.headers["authorization"] == second.headers["authorization"] == "Basic bWU6c2VjcmV0"


@pytest.mark.parametrize("status", [302, 307])
async def test_another_host_gets_no_password(status: int) -> None:
    """Neither that host nor later ones. A token from there is accepted."""
    async with serving(Server([])) as other, guarded() as (both, client):
        other.script = [reply(302, location="/next"), reply(302, location=f"http://{both.tokens.host}/back")]
        both.tokens.script = [reply(status, location=f"http://{other.host}/token"), reply(200, b'{"token": "T"}')]
        both.accepted = {"Bearer T"}
        assert await get(client) == 200
    assert len(other.requests) == 2
    assert not any("authorization" in request.headers for request in [*other.requests, both.tokens.requests[-1]])


@pytest.mark.parametrize("status", [307, 308])
async def test_an_identity_token_is_not_sent_elsewhere(status: int) -> None:
    """These redirects repeat the form: on the same server that is right, elsewhere it would reveal the token."""
    async with serving(Server([])) as other, guarded(Credentials("", "", "refresh me")) as (both, client):
        both.tokens.script = [reply(status, location="/elsewhere"), reply(200, b'{"token": "T"}')]
        both.accepted = {"Bearer T"}
        assert await get(client) == 200
        assert both.tokens.requests[1].method == "POST" and b"refresh+me" in both.tokens.requests[1].body
        both.accepted.clear()
        both.tokens.script = [reply(status, location=f"http://{other.host}/token")]
        with pytest.raises(BadAnswer, match="the identity token is not sent to another host"):
            await get(client)
    assert not other.requests


async def test_a_form_that_is_redirected_otherwise_is_not_repeated() -> None:
    """302 turns it into a GET, everywhere: another host gets nothing."""
    async with serving(Server([])) as other, guarded(Credentials("", "", "refresh me")) as (both, client):
        other.script = [reply(200, b'{"token": "T"}')]
        both.tokens.script = [reply(302, location=f"http://{other.host}/token")]
        both.accepted = {"Bearer T"}
        assert await get(client) == 200
    (request,) = other.requests
    assert (request.method, request.body) == ("GET", b"") and "refresh" not in request.target


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://host/x", True),
        ("https://host:5001/x", True),
        ("http://host:5000/x", True),
        ("http://host:5001/x", False),
        ("https://host.evil/x", False),
    ],
)
def test_where_credentials_may_be_sent(location: str, expected: bool) -> None:
    """The same server, or TLS on the same host."""
    realm = parse_url("http://host:5000/token", "it")
    assert tokens._is_same_place(realm, parse_url(location, "it")) is expected


async def test_no_credentials_where_some_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to provide some."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    async with guarded(None) as (both, client):
        both.challenge = "Basic realm=x"
        with pytest.raises(Unauthorized, match=r"there are none.*--creds"):
            await get(client)


@pytest.mark.parametrize(
    "challenge", ["Negotiate", "Digest realm=x", 'Bearer service="x"', 'Bearer realm="ftp://x"', 'Bearer realm="x']
)
async def test_a_challenge_that_we_cannot_meet(challenge: str) -> None:
    """Other schemes, no realm, an unreadable header."""
    async with guarded() as (both, client):
        both.challenge = challenge
        with pytest.raises(SourceError):
            await get(client)
    assert not both.tokens.requests


async def test_credentials_never_go_to_a_plain_realm_of_a_secure_registry() -> None:
    """An https registry whose realm is http: the password would be sent in the clear."""
    async with guarded() as (both, client):
        client.tokens._root = Url("https", "registry.example", 443, "/v2/")
        with pytest.raises(BadAnswer, match="without https"):
            await get(client)
    assert not both.tokens.requests


async def test_a_token_server_in_trouble_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """503 may be temporary."""
    async with guarded() as (both, client):
        both.tokens.script = [reply(503), reply(503), reply(200, b'{"token": "T"}')]
        both.accepted = {"Bearer T"}
        assert await get(client) == 200


async def test_a_token_server_is_left_alone_when_it_asks_for_that(
    autojump_clock: trio.testing.MockClock, expect_log: LogWatch
) -> None:
    """Also by those who want a token for something else."""
    expect_log("no request to it for 9 s")
    async with guarded() as (both, client):
        both.tokens.script = [reply(429, retry_after="9"), reply(200, b'{"token": "T"}')]
        both.accepted = {"Bearer T"}
        start = trio.current_time()
        assert await get(client) == 200
        assert trio.current_time() - start >= 9


async def test_tokens_have_no_readable_repr() -> None:
    """A kept token is not shown."""
    async with guarded() as (_, client):
        await get(client)
        assert "T1" not in repr(client.tokens._bearer)
