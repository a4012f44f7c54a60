"""Ranges of blobs: what a server may answer, and what must be rejected."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from lazyfs.errors import BadAnswer, NotFound, RangeIgnored, SourceError, Unauthorized, Unreachable
from lazyfs.registry.ranges import CAUTIOUS, MAX_AHEAD, MAX_RANGES, MAX_SKIP
from tests.unit.registry.one_blob import BLOB, DIGEST, SCOPE, fails, ranged, ranges_of, read, read_from
from tests.unit.registry.scripted import Answer, Reply, Request, Script, Server, reply, serving


async def test_many_ranges_take_one_connection() -> None:
    """Keep-alive: each body is read to its end, so the next request uses the same connection."""
    async with serving(Server(ranged)) as server, ranges_of(server.host) as ranges:
        for start in range(0, 1000, 100):
            assert await read(ranges, start, start + 100) == BLOB[start : start + 100]
    assert server.connections == 1
    assert server.requests[1].headers["range"] == "bytes=100-199"
    assert server.requests[1].target == f"/v2/r/blobs/{DIGEST}"


async def test_ranges_use_connections_that_were_opened_ahead() -> None:
    """They need no further round trip. There are never many."""
    async with serving(Server(ranged)) as server, ranges_of(server.host) as ranges:
        await ranges.connect_ahead(3)
        async with trio.open_nursery() as nursery:
            for start in range(3):
                nursery.start_soon(read, ranges, start, start + 9)
        assert server.connections == 3
        await ranges.connect_ahead(1000)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.connections == 3 + MAX_AHEAD


async def test_failing_to_connect_ahead_is_not_an_error() -> None:
    """The request for a range gets the error."""
    async with serving(Server(ranged)) as server:
        host = server.host
    async with ranges_of(host) as ranges:
        await ranges.connect_ahead(2)


async def test_parts_of_a_range_are_read_in_order() -> None:
    """A reader takes as much as it wants, as often as it wants, but not more than the range has."""
    path = f"r/blobs/{DIGEST}"
    async with (
        serving(Server(ranged)) as server,
        ranges_of(server.host) as ranges,
        ranges.open("blob B", path, SCOPE, DIGEST, len(BLOB), 5, 50) as body,
    ):
        assert await body.receive_exactly(5) == BLOB[5:10]
        assert await body.receive_exactly(40) == BLOB[10:50]
        with pytest.raises(BadAnswer, match="ends 1 bytes before"):
            await body.receive_exactly(1)


async def test_open_ranges_are_bounded() -> None:
    """Twice as many readers as slots: never more connections than slots, and all are served. The next readers use the same
    connections."""
    async with serving(Server(ranged)) as server, ranges_of(server.host) as ranges:
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for start in range(2 * MAX_RANGES):
                    nursery.start_soon(read, ranges, start, start + 9)
    assert len(server.requests) == 2 * 2 * MAX_RANGES
    assert server.connections <= MAX_RANGES


@pytest.mark.parametrize(("status", "crowd"), [(429, 1), (503, MAX_RANGES)])
async def test_a_server_that_refused_too_many_requests_gets_fewer(status: int, crowd: int) -> None:
    """Eight at a time from then on, whether one request or many were refused. All are served."""
    refusals = [reply(status)]

    def script(request: Request) -> Answer:
        return refusals.pop() if refusals else ranged(request)

    done: list[int] = []

    async def late() -> None:
        await read(ranges, 0, 10)
        done.append(1)

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        async with trio.open_nursery() as nursery:
            for start in range(crowd):
                nursery.start_soon(read, ranges, start, start + 9)
        async with trio.open_nursery() as nursery:
            async with AsyncExitStack() as stack:
                for _ in range(CAUTIOUS):
                    await stack.enter_async_context(ranges.open("blob B", f"r/blobs/{DIGEST}", SCOPE, DIGEST, len(BLOB), 0, 5000))
                nursery.start_soon(late)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not done
    assert done


async def test_leaving_early_costs_the_connection_only() -> None:
    """What was not read must not be taken for the next response."""
    async with serving(Server(ranged)) as server, ranges_of(server.host) as ranges:
        async with ranges.open("blob B", f"r/blobs/{DIGEST}", SCOPE, DIGEST, len(BLOB), 0, 5000) as body:
            await body.receive_exactly(10)
        assert await read(ranges, 7, 17) == BLOB[7:17]
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(206, BLOB[10:20], content_range=f"bytes 11-20/{len(BLOB)}"), "with 'bytes 11-20"),
        (reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB) + 1}"), "with 'bytes 10-19/10241"),
        (reply(206, BLOB[10:19]), "no range"),
        (reply(206, b"", content_range=f"bytes 10-19/{len(BLOB)}"), "a body of 0 bytes"),
        (reply(206, BLOB[10:25], content_range=f"bytes 10-24/{len(BLOB)}"), "with 'bytes 10-24"),
        (reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB) - 1}"), "with 'bytes 10-19/10239"),
        (reply(206, b"", content_range=f"bytes 10-9/{len(BLOB)}"), "with 'bytes 10-9/"),
        (reply(206, b"x", content_range=f"bytes 10-19/{len(BLOB)}", transfer_encoding="gzip"), "transfer encoding"),
        (reply(206, b"zz\r\n", content_range=f"bytes 10-19/{len(BLOB)}", transfer_encoding="chunked"), "grammar of chunks"),
        (reply(206, BLOB[10:21], content_range=f"bytes 10-19/{len(BLOB)}"), "a body of 11 bytes"),
        (reply(206, b"--x", content_type="multipart/byteranges; boundary=x"), "several ranges"),
        (reply(200, BLOB[:-1]), "whole blob of 10239 bytes"),
        (reply(204), "answers 204"),
        (reply(302), "without saying where"),
        (reply(302, location="ftp://x/"), "not a plain http"),
        (reply(302, location="http://u:<@x/"), "an invalid user name or password"),
        (reply(302, location="http://x/\ty"), "not a URL"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1.1"),
        (b"220 smtp.example.org\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000, "headers of over 65536 bytes"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n", "two content-length"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: -1\r\n\r\n", "not a number"),
        (b"HTTP/1.1 206 OK\r\nnonsense\r\n\r\n", "grammar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_answer_that_is_not_what_was_asked_is_an_error(answer: bytes, message: str) -> None:
    """Another range, another length, not HTTP: BadAnswer at once, naming blob and host."""
    error = await fails([Reply(answer, "close")])
    assert isinstance(error, BadAnswer)
    assert message in str(error)


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (401, Unauthorized), (410, BadAnswer)])
async def test_errors_are_distinguished_by_status(status: int, kind: type[SourceError]) -> None:
    """None of them is retried: the script has one answer."""
    assert type(await fails([reply(status)])) is kind


@pytest.mark.parametrize(("claimed", "patience"), [("100", 5), ("16384", 5), ("16385", 0), ("99999999", 0)])
async def test_an_error_whose_body_does_not_arrive_is_raised_soon(
    claimed: str, patience: int, autojump_clock: trio.testing.MockClock
) -> None:
    """A short one is worth a moment, because the connection can be used again. A long one is not."""
    started = trio.current_time()
    assert isinstance(await fails([Reply(reply(404, content_length=claimed), "silence")]), NotFound)
    assert trio.current_time() - started == pytest.approx(patience)


@pytest.mark.parametrize(("start", "end"), [(0, len(BLOB)), (0, 10), (100, 200), (100, len(BLOB))])
async def test_a_200_is_skipped_over(start: int, end: int) -> None:
    """A server without ranges sends the whole blob, which is good enough near its beginning."""
    got, _ = await read_from([reply(200, BLOB)], start, end)
    assert got == BLOB[start:end]


async def test_a_200_read_to_its_end_keeps_the_connection() -> None:
    """A tail is read to the end of the body. A part from the middle is not, and must not affect the next response."""
    async with serving(Server(lambda _: reply(200, BLOB))) as server, ranges_of(server.host) as ranges:
        await read(ranges, 100, len(BLOB))
        await read(ranges, 100, 200)
        assert await read(ranges, 5, 6) == BLOB[5:6]
    assert server.connections == 2


async def test_a_200_left_in_the_middle_loses_the_connection() -> None:
    """Also if the rest is still to come, so that nothing shows it yet."""
    begun = Reply(reply(200, BLOB[:10], content_length=str(len(BLOB))), "silence")
    async with serving(Server([begun, begun])) as server, ranges_of(server.host) as ranges:
        with trio.fail_after(5):
            for _ in range(2):
                assert await read(ranges, 0, 10) == BLOB[:10]
    assert server.connections == 2


async def test_a_200_too_far_from_the_range_is_not_read() -> None:
    """Beyond 1 MiB, the caller must decide to stream the blob once. Up to there it is skipped."""
    blob = bytes(MAX_SKIP) + b"tail and more"
    with pytest.raises(RangeIgnored):
        await read_from([reply(200, blob)], MAX_SKIP + 1, len(blob), len(blob))
    got, _ = await read_from([reply(200, blob)], MAX_SKIP, len(blob), len(blob))
    assert got == b"tail and more"
    got, _ = await read_from([reply(200, blob)], 0, len(blob), len(blob))
    assert got == blob


async def test_too_much_never_reaches_the_next_reader() -> None:
    """Bytes after the body cost the connection, and are not taken for a response."""
    forged = reply(206, b"EVIL", content_range=f"bytes 20-23/{len(BLOB)}")
    script: Script = [
        ranged(Request("GET", "/", {"range": "bytes=10-19"}, b"")) + forged,
        reply(206, BLOB[20:24], content_range=f"bytes 20-23/{len(BLOB)}"),
    ]
    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 10, 20) == BLOB[10:20]
        assert await read(ranges, 20, 24) == BLOB[20:24]
    assert server.connections == 2


@pytest.mark.parametrize("content_range", ["", "10-19/10240", "bytes */10240", "lines 1-2/3"])
async def test_a_response_that_does_not_say_which_range_it_is(content_range: str) -> None:
    """It has the requested length. Whether it is the right range, its digests show."""
    got, _ = await read_from([reply(206, BLOB[10:20], content_range=content_range)], 10, 20)
    assert got == BLOB[10:20]


async def test_a_server_that_never_answers_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """One deadline covers everything before the first byte."""
    started = trio.current_time()
    error = await fails([Reply(b"", "silence")])
    assert "did not answer within 30 s" in str(error)
    assert 30 <= trio.current_time() - started < 31


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(status: int, autojump_clock: trio.testing.MockClock) -> None:
    """A server in trouble is asked again."""
    good = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    got, server = await read_from([reply(status, b"x"), reply(status, b"x"), good], 10, 20)
    assert got == BLOB[10:20]
    assert (len(server.requests), server.connections) == (3, 1)


async def test_trouble_that_does_not_pass_ends(autojump_clock: trio.testing.MockClock) -> None:
    """Five tries. The error names the last response."""
    error = await fails([reply(503)] * 5)
    assert isinstance(error, Unreachable)
    assert "answers 503" in str(error)


async def test_a_closed_port(autojump_clock: trio.testing.MockClock) -> None:
    """An unreachable registry is named, after a few tries within seconds."""
    async with serving(Server([])) as server:
        pass
    started = trio.current_time()
    async with ranges_of(server.host) as ranges:
        with pytest.raises(Unreachable, match=f"cannot connect to {server.host}"):
            await read(ranges, 0, 1)
    assert 1 < trio.current_time() - started < 10


async def test_a_connection_that_closed_while_it_waited_is_replaced() -> None:
    """No failure, no pause, and no second try on a fresh connection."""
    closing = Reply(reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}"), "close")
    async with serving(Server([closing] * 3)) as server, ranges_of(server.host) as ranges:
        for _ in range(3):
            assert await read(ranges, 10, 20) == BLOB[10:20]
    assert server.connections == 3


async def test_a_connection_that_closes_on_the_next_request_is_replaced(autojump_clock: trio.testing.MockClock) -> None:
    """No check can prevent this race: the server closes just when the request is sent. It costs no pause."""
    start = trio.current_time()
    good = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    async with serving(Server([good, Reply(b"", "close"), good])) as server, ranges_of(server.host) as ranges:
        await read(ranges, 10, 20)
        assert await read(ranges, 10, 20) == BLOB[10:20]
    assert (len(server.requests), server.connections) == (3, 2)
    assert trio.current_time() == start


async def test_http_1_0_and_connection_close_are_not_reused() -> None:
    """Either means that the connection ends with this response."""
    good = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    old, closing = good.replace(b"HTTP/1.1", b"HTTP/1.0"), good.replace(b" X\r\n", b" X\r\nConnection: x, Close\r\n")
    async with serving(Server([old, closing, good])) as server, ranges_of(server.host) as ranges:
        for _ in range(3):
            assert await read(ranges, 10, 20) == BLOB[10:20]
    assert server.connections == 3


async def test_interim_answers_are_passed_over() -> None:
    """Such as 103 Early Hints, before the response."""
    good = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    got, _ = await read_from([good], 10, 20)
    assert got == BLOB[10:20]


async def test_basic_auth_is_sent_when_asked_for_and_then_at_once() -> None:
    """No credentials before the registry asks for them, and no needless 401 afterwards."""

    def guarded(request: Request) -> bytes:
        if request.headers.get("authorization") == "Basic dTpw":
            return ranged(request)
        return reply(401, b"who are you?", www_authenticate='Basic realm="r"')

    async with serving(Server(guarded)) as server, ranges_of(server.host) as ranges:
        for _ in range(2):
            assert await read(ranges, 0, 5) == BLOB[:5]
    assert ["authorization" in request.headers for request in server.requests] == [False, True, True]


@pytest.mark.parametrize("then", ["close", "silence"])
async def test_a_refusal_needs_no_body(then: str, autojump_clock: trio.testing.MockClock) -> None:
    """If the body of a challenge breaks off or does not arrive, its head counts."""
    challenge = Reply(reply(401, b"who", content_length="500", www_authenticate='Basic realm="r"'), then)
    good = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    got, server = await read_from([challenge, good], 10, 20)
    assert got == BLOB[10:20]
    assert server.connections == 2


async def test_wrong_credentials_are_an_error_each_time() -> None:
    """Two requests show that they do not help, and later ones find out with one. The error never shows them."""
    refusing = reply(401, www_authenticate='Basic realm="r"')
    async with serving(Server([refusing] * 3)) as server, ranges_of(server.host) as ranges:
        with pytest.raises(Unauthorized, match="answers 401"):
            await read(ranges, 0, 5)
        with pytest.raises(Unauthorized, match="refuses the credentials of 'u'"):
            await read(ranges, 0, 5)
    assert not server.script


async def test_cancelled_requests_leave_the_client_usable() -> None:
    """Fifty readers are cancelled in the middle. The next one is served, and no connection stays open."""
    answer = reply(206, BLOB[10:15], content_length="10", content_range=f"bytes 10-19/{len(BLOB)}")
    async with serving(Server([])) as server, ranges_of(server.host) as ranges:
        for number in range(50):
            server.script = [Reply(answer if number % 2 else b"", "silence")]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, ranges, 10, 20)
                while server.script:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        server.script = ranged
        assert await read(ranges, 10, 20) == BLOB[10:20]
        while server.open > 1:
            await trio.lowlevel.checkpoint()


async def test_a_redirect_with_a_password_logs_in() -> None:
    """The password is for the store, which gets no token of the registry."""
    async with serving(Server(ranged)) as store:
        moved = reply(307, location=f"http://user:pass@{store.host}/b")
        async with serving(Server([moved])) as server, ranges_of(server.host) as ranges:
            for start in (0, 100):
                assert await read(ranges, start, start + 50) == BLOB[start : start + 50]
    assert {request.headers["authorization"] for request in store.requests} == {"Basic dXNlcjpwYXNz"}
    assert "authorization" not in server.requests[0].headers
