"""Documents and other small responses: redirects, retries, bounds, and a client that survives cancellation."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from lazyfs.errors import BadAnswer, HeldOff, NotFound, SourceError, Unauthorized, Unreachable
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient, error_for_status
from lazyfs.registry.credentials import Credentials
from lazyfs.registry.http import MAX_CONNECTIONS
from lazyfs.registry.url import parse_url
from tests.conftest import LogWatch
from tests.unit.registry.scripted import Reply, Request, Script, Server, reply, serving

SCOPE = ("repository:a:pull",)
HEAD = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def asking(script: Script) -> AsyncIterator[tuple[Server, RegistryClient]]:
    """A server and a client."""
    async with serving(Server(script)) as server:
        client = RegistryClient(server.host, AccessOptions(Credentials("u", "p")))
        try:
            yield server, client
        finally:
            await client.aclose()


async def get(client: RegistryClient, limit: int = 1000) -> bytes:
    """The body of one response."""
    return (await client.ask("it", "GET", client.url("a/manifests/x"), SCOPE, limit=limit)).body


async def test_one_connection_serves_many() -> None:
    """httpx keeps it open."""
    async with asking(lambda _: reply(200, b"x")) as (server, client):
        for _ in range(5):
            assert await get(client) == b"x"
    assert server.connections == 1


async def test_redirects_leave_authorization_behind() -> None:
    """Another port is another host."""
    async with serving(Server([reply(200, b"there")])) as store, asking([]) as (server, client):
        server.script = [reply(401, www_authenticate="Basic realm=x"), reply(307, location=f"http://{store.host}/m?sig=1")]
        assert await get(client) == b"there"
    assert server.requests[1].headers["authorization"].startswith("Basic ")
    assert "authorization" not in store.requests[0].headers
    assert store.requests[0].target == "/m?sig=1"


async def test_redirects_are_bounded() -> None:
    """Loops, too many, and targets that do not exist."""
    async with asking(lambda request: reply(302, location=request.target)) as (_, client):
        with pytest.raises(BadAnswer, match="in a circle"):
            await get(client)
    async with asking([reply(302, location=f"/{number}") for number in range(11)]) as (_, client):
        with pytest.raises(BadAnswer, match="more than 10 times"):
            await get(client)
    async with asking([reply(302)]) as (_, client):
        with pytest.raises(BadAnswer, match="without saying where"):
            await get(client)


async def test_answers_are_bounded() -> None:
    """A body over the limit, and one that inflates to more."""
    bomb = reply(200, gzip.compress(bytes(1001)), content_encoding="gzip")
    async with asking([reply(200, bytes(1001)), bomb]) as (_, client):
        with pytest.raises(BadAnswer, match="over 1000 bytes"):
            await get(client)
        with pytest.raises(BadAnswer, match="inflates to over 1000 bytes"):
            await get(client)


@pytest.mark.parametrize("size", [2000, 100_000])
async def test_a_long_refusal_is_a_refusal(size: int, autojump_clock: trio.testing.MockClock) -> None:
    """A page that explains an error may be longer than the limit: each status keeps its meaning."""
    page = b" " * size
    challenge = reply(401, page, www_authenticate="Basic realm=x")
    async with asking([reply(404, page), reply(503, page), challenge, reply(302, page, location="/x"), reply(200, b"x")]) as (
        server,
        client,
    ):
        assert (await client.ask("it", "GET", client.url("x"), SCOPE, limit=1000)).status == 404
        assert await get(client) == b"x"
        assert not server.script


BROKEN = {
    "cut": Reply(b"Content-Length: 500\r\n\r\nno", "close"),
    "broken chunks": Reply(b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "close"),
    "never sent": Reply(b"Content-Length: 500\r\n\r\n", "silence"),
    "cut, behind an odd head": Reply(b"X Odd: 1\r\nContent-Length: 500\r\n\r\nno", "close"),
    "never sent, behind an odd head": Reply(b"X Odd: 1\r\nContent-Length: 500\r\n\r\nno", "silence"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
async def test_a_refusal_needs_no_body(body: Reply, autojump_clock: trio.testing.MockClock) -> None:
    """The head of a challenge, a redirect or a 404 is sufficient. Its body may break off, as for Go's clients."""

    def answer(request: Request) -> Reply:
        if request.target == "/there":
            return Reply(reply(200, b"x"))
        head = b"404 No" if "absent" in request.target else b"307 There\r\nLocation: /there"
        if "authorization" not in request.headers:
            head = b"401 Who\r\nWWW-Authenticate: Basic realm=x"
        return body._replace(data=b"HTTP/1.1 " + head + b"\r\n" + body.data)

    async with asking(answer) as (_, client):
        assert await get(client) == b"x"
        assert (await client.ask("it", "GET", client.url("absent"), SCOPE)).status == 404


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
async def test_what_is_written_is_written_by_the_head(body: Reply, autojump_clock: trio.testing.MockClock) -> None:
    """A 201 confirms the write. The body that may follow is not needed."""
    answers = [body._replace(data=b"HTTP/1.1 201 Kept\r\n" + body.data)] * 2
    async with asking(lambda _: answers.pop(0)) as (_, client):
        for _ in range(2 if b"Odd" not in body.data else 1):
            assert (await client.ask("it", "PUT", client.url("m"), SCOPE, content=b"document")).status == 201
        assert not answers


@pytest.mark.parametrize("encoding", ["gzip", "Identity", "aws-chunked"])
async def test_unrequested_encodings(encoding: str) -> None:
    """Inflated if the body is compressed, ignored if it is not."""
    body = gzip.compress(b"x") if encoding == "gzip" else b"x"
    async with asking([reply(200, body, content_encoding=encoding)]) as (server, client):
        assert await get(client) == b"x"
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("rest", [b"\r\n", b"rubbish"])
async def test_bytes_after_a_body_are_not_a_response(rest: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """A line too many, or a body for HEAD: the next request gets its own connection and its response, and so do those after it."""
    async with asking([]) as (server, client):
        server.script = lambda _: reply(200, b"one") + (rest if len(server.requests) == 1 else b"")
        for _ in range(3):
            assert await get(client) == b"one"
    assert server.connections == 3


async def test_cookies_are_not_kept() -> None:
    """Some registries take a client that sends a cookie for a browser, which may not write."""
    async with asking([reply(200, b"x", set_cookie="sid=1; Path=/")] * 2) as (server, client):
        for _ in range(2):
            await get(client)
    assert not any("cookie" in request.headers for request in server.requests)


SIGNED = "/m%2f%2F?sig=a/b+c=%2f,;:@!$'()*|\"<>[]{}^`~\\"


async def test_a_signed_location_is_asked_for_letter_by_letter() -> None:
    """Another spelling of the same URL has another signature."""
    async with asking([reply(307, location=SIGNED), reply(200, b"x")]) as (server, client):
        assert await get(client) == b"x"
    assert server.requests[1].target == SIGNED


@pytest.mark.parametrize(("status", "followed"), [(307, True), (308, True), (301, False), (302, False), (303, False)])
async def test_redirects_of_what_is_written(status: int, followed: bool) -> None:
    """307 and 308 repeat the request with its body. The others would make it a GET."""
    async with asking([reply(status, location="/there")]) as (server, client):
        if followed:
            server.script = [reply(status, location="/there"), reply(201)]
        answer = await client.ask("it", "PUT", client.url("m"), SCOPE, content=b"document")
    assert answer.status == (201 if followed else status)
    assert [request.body for request in server.requests] == [b"document"] * (2 if followed else 1)


async def test_a_body_that_ends_by_closing_is_whole() -> None:
    """Without a length, only digests can tell."""
    async with asking([Reply(HEAD + b"\r\nwhole", "close")]) as (_, client):
        assert await get(client) == b"whole"


ODD = {
    "names with blanks": b"X Odd: 1\r\n",
    "names of Latin-1": b"X-\xe9: 1\r\n",
    "names in brackets": b"X[0]: 1\r\n",
    "no name": b": 1\r\n",
    "NUL": b"X-Odd: a\0b\r\n",
}


@pytest.mark.parametrize("field", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n\r\nwhole", b"Transfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", b"\r\nwhole"]
)
async def test_heads_that_httpx_refuses_and_go_does_not(field: bytes, framing: bytes) -> None:
    """The request is repeated, and the head parsed as for blobs, whatever the framing of the body. The bounds hold."""
    async with asking(lambda _: Reply(HEAD + field + framing, "close")) as (server, client):
        assert await get(client) == b"whole"
        assert len(server.requests) == 2
        assert server.requests[0].target == server.requests[1].target
        with pytest.raises(BadAnswer, match="over 4 bytes"):
            await get(client, limit=4)
        answer = await client.ask("it", "PUT", client.url("m"), SCOPE, headers={"Content-Type": "a/b"}, content=b"document")
        assert answer.status == 200
        assert [(request.body, request.headers["content-type"]) for request in server.requests[-2:]] == [(b"document", "a/b")] * 2


@pytest.mark.parametrize("answer", [b"HTTP/2 200\r\n\r\n", HEAD + b"nonsense\r\n\r\n", HEAD + b"Content-Length: x\r\n\r\n"])
async def test_a_breach_of_the_grammar_is_not_repeated(answer: bytes) -> None:
    """A more lenient parser reads it a second time, and that is all."""
    async with asking([Reply(answer, "close")] * 2) as (server, client):
        with pytest.raises(BadAnswer, match="breaks HTTP"):
            await get(client)
        assert not server.script


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        reply(200, b"x" * 10, content_length="12"),
    ],
)
async def test_what_breaks_http_is_an_error(answer: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """As one of lazyfs's errors, whatever httpx calls it."""
    async with asking([Reply(answer, "close")] * 5) as (_, client):
        with pytest.raises(SourceError):
            await get(client)


async def test_trouble_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """503, a connection that breaks off, then the response."""
    async with asking([reply(503), Reply(b"", "close"), reply(200, b"x")]) as (server, client):
        assert await get(client) == b"x"
    assert len(server.requests) == 3


async def test_a_host_that_wants_to_be_left_alone_is(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """By every document. If the deadline ends earlier, it fails at once."""
    expect_log("answered 429: no request to it for 20 s")
    asked: list[float] = []

    def script(_: Request) -> bytes:
        asked.append(trio.current_time())
        return reply(429, retry_after="20") if len(asked) == 1 else reply(200, b"x")

    async with asking(script) as (_, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, client)
            await trio.sleep(1)
            nursery.start_soon(get, client)
            with pytest.raises(HeldOff, match="may be asked again in 19 s"), trio.fail_after(5):
                await get(client)
            assert len(asked) == 1
    assert len(asked) == 3 and min(asked[1:]) - asked[0] >= 20


async def test_the_error_code_of_the_specification_is_reported(autojump_clock: trio.testing.MockClock) -> None:
    """But not the registry's free text."""
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "\\u001b[31mEVIL"}, {"code": "no code"}]}'
    async with asking([reply(429, body)] * 5) as (_, client):
        with pytest.raises(Unreachable, match=r"it: .* answers 429 \(TOOMANYREQUESTS\)") as caught:
            await get(client)
    assert "EVIL" not in str(caught.value)


def test_errors_are_distinguished_by_status() -> None:
    """404, 401 and 403, and the rest."""
    url = parse_url("http://host/v2/secret", "it")
    kinds = {status: type(error_for_status("it", url, status)) for status in (400, 401, 403, 404, 405, 301)}
    assert kinds == {400: BadAnswer, 401: Unauthorized, 403: Unauthorized, 404: NotFound, 405: BadAnswer, 301: BadAnswer}


async def test_a_silent_server_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Within the deadline, including retries."""
    start = trio.current_time()
    async with asking(lambda _: Reply(b"", "silence")) as (_, client):
        with pytest.raises(Unreachable):
            await get(client)
    assert trio.current_time() - start <= 31


async def test_a_dripping_server_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Occasional bytes are not a response: the deadline covers all of it."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def drip(stream: trio.SocketStream) -> None:
        async with stream:
            with trio.move_on_after(10_000):
                try:
                    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    while True:
                        await trio.sleep(5)
                        await stream.send_all(b"x")
                except trio.BrokenResourceError:
                    pass

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, drip, listeners)
        client = RegistryClient(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", AccessOptions())
        with pytest.raises(Unreachable, match="did not answer within 30 s"):
            await get(client)
        assert trio.current_time() - start == pytest.approx(30, abs=1)
        await client.aclose()
        nursery.cancel_scope.cancel()


async def test_cancelled_requests_leave_the_client_usable() -> None:
    """Many are cancelled, before and within the response. The next one is served, and no connection stays open."""
    async with asking([]) as (server, client):
        for number in range(50):
            server.script = [Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf" if number % 2 else b"", "silence")]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, client)
                while server.script:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        server.script = [reply(200, b"x")]
        assert await get(client) == b"x"
        while server.open > 1:
            await trio.lowlevel.checkpoint()


async def test_requests_cancelled_in_a_queue_leave_the_client_usable() -> None:
    """This is where httpx's pool leaks: a connection that a request gives up goes to another one that was cancelled too."""
    async with serving(Server(lambda _: reply(200, b"x"))) as server:
        client = RegistryClient(f"localhost:{server.port}", AccessOptions())
        for moment in range(40):
            async with trio.open_nursery() as nursery:
                for _ in range(2 * MAX_CONNECTIONS):
                    nursery.start_soon(get, client)
                for _ in range(moment):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            assert await get(client) == b"x"
        await client.aclose()


async def test_a_cancelled_request_does_no_harm_to_another() -> None:
    """Two share a client. One is cancelled while the other is in the middle of its response, which it gets."""
    cancelled = trio.CancelScope()
    proceed = trio.Event()
    answers: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        request = await stream.receive_some(65536)
        if b"/slow" in request:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
            await proceed.wait()
            await stream.send_all(b"b")
        await stream.receive_some(1)

    async def ask(path: str, scope: trio.CancelScope) -> None:
        with scope:
            answers.append((await client.ask("it", "GET", client.url(path), SCOPE)).body)

    async with trio.open_nursery() as servers:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        servers.start_soon(trio.serve_listeners, serve, listeners)
        client = RegistryClient(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", AccessOptions())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "never", cancelled)
            nursery.start_soon(ask, "slow", trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel()
            await trio.testing.wait_all_tasks_blocked()
            proceed.set()
        await client.aclose()
        servers.cancel_scope.cancel()
    assert answers == [b"ab"]
