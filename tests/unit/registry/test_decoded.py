"""Bodies without a length, and heads that only h11 can read: ranges are right all the same."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lazyfs.errors import BadAnswer, Unreachable
from tests.unit.registry.one_blob import BLOB, fails, ranges_of, read, read_from
from tests.unit.registry.scripted import Answer, Reply, Request, Server, reply, serving
from tests.unit.registry.test_body import wanted


def chunks(data: bytes, size: int) -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x;n=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nT: x\r\n\r\n"


def chunked(request: Request, size: int = 1000) -> bytes:
    """The correct response, chunked."""
    start, end = wanted(request)
    body = chunks(BLOB[start:end], size)
    where = f"bytes {start}-{end - 1}/{len(BLOB)}"
    return reply(206, body, content_length="", content_range=where, transfer_encoding="Chunked")


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
async def test_a_body_in_chunks(size: int) -> None:
    """Content-Range gives its length. A connection whose body has ended is used again."""
    async with serving(Server(lambda request: chunked(request, size))) as server, ranges_of(server.host) as ranges:
        for start in (0, 100, 5000):
            assert await read(ranges, start, start + 3000) == BLOB[start : start + 3000]
    assert server.connections == 1


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("is_old", [True, False])
async def test_a_body_that_ends_with_the_connection(status: int, is_old: bool) -> None:
    """Neither length nor chunks, also from HTTP/1.0. Such a connection is never used again."""

    def script(request: Request) -> Answer:
        start, end = wanted(request)
        where = f"bytes {start}-{end - 1}/*" if status == 206 else ""
        data = reply(status, BLOB[start:end] if status == 206 else BLOB, content_length="", content_range=where)
        return Reply(data.replace(b"HTTP/1.1", b"HTTP/1.0") if is_old else data, "close")

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        for start in (0, 100, 5000):
            assert await read(ranges, start, start + 3000) == BLOB[start : start + 3000]
    assert server.connections == 3


@pytest.mark.parametrize("ending", ["chunk", "connection"])
async def test_a_cut_body_without_a_length_goes_on(ending: str) -> None:
    """Within a chunk, or if the connection ends before what Content-Range promised."""

    def script(request: Request) -> Answer:
        start, end = wanted(request)
        if ending == "chunk":
            return Reply(chunked(request)[: 400 + len(chunked(request)) // 9], "close")
        where = f"bytes {start}-{end - 1}/{len(BLOB)}"
        return Reply(reply(206, BLOB[start:end][:900], content_length="", content_range=where), "close")

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 0, 7000) == BLOB[:7000]
    assert 2 < len(server.requests) < 20


async def test_chunks_that_break_the_grammar_end_it() -> None:
    """Whatever came before them: the meaning of the body is unknown."""
    where = f"bytes 0-99/{len(BLOB)}"
    bad = reply(206, b"5\r\nhelloX", content_length="", content_range=where, transfer_encoding="chunked")
    error = await fails([bad], 0, 100)
    assert isinstance(error, BadAnswer) and "grammar of chunks" in str(error)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
async def test_size_lines_may_end_in_a_bare_lf(step: int) -> None:
    """As in Go. Such a connection is not used again: another reader could see another end."""
    body = chunks(BLOB[:100], 9).replace(b";n=1\r\n", b" \n").replace(b"0\r\nT: x\r\n", b"0\n")
    where = f"bytes 0-99/{len(BLOB)}"
    data = reply(206, body, content_length="", content_range=where, transfer_encoding="chunked")
    async with serving(Server(lambda _: Reply(data, "drip", len(body), 0.0, step))) as server, ranges_of(server.host) as ranges:
        for _ in range(2):
            assert await read(ranges, 0, 100) == BLOB[:100]
    assert server.connections == 2


@pytest.mark.parametrize(
    "body", [b"\n", b"x\n", b"5 5\r\n", b"-5\r\n", b"1" * 17, b"1;" + b"x" * 5000, b"0\r\n" + b"T: x\r\n" * 20_000]
)
async def test_lines_that_no_chunk_begins_with(body: bytes) -> None:
    """Invalid sizes, and endless lines and trailers: BadAnswer before more of them is held."""
    where = f"bytes 0-99/{len(BLOB)}"
    bad = reply(206, body + b"\n", content_length="", content_range=where, transfer_encoding="chunked")
    assert isinstance(await fails([bad], 0, 100), BadAnswer)


async def test_what_follows_the_last_chunk_never_reaches_the_next_reader() -> None:
    """Bytes after the end of the body cost the connection."""
    script: list[Answer] = [chunked(Request("GET", "/", {"range": "bytes=0-99"}, b"")) + b"HTTP/1.1 206 X\r\n"]
    async with serving(Server(lambda request: script.pop() if script else chunked(request))) as server:
        async with ranges_of(server.host) as ranges:
            for start in (0, 200):
                assert await read(ranges, start, start + 100) == BLOB[start : start + 100]
    assert server.connections == 2


async def test_a_chunked_body_that_trickles_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """The floor applies to the decoded bytes."""

    def script(request: Request) -> Answer:
        if len(server.requests) > 1:
            return chunked(request)
        data = chunked(request, 1)
        return Reply(data, "drip", len(data) - 200, 0.1)

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        assert await read(ranges, 0, 7000) == BLOB[:7000]
        assert trio.current_time() - started < 22
    assert len(server.requests) == 2 and wanted(server.requests[1])[0] > 0


async def test_a_chunked_body_that_ends_early_is_a_short_one(autojump_clock: trio.testing.MockClock) -> None:
    """It ends, but not with what was promised. After five without bytes, it fails."""
    where = f"bytes 0-99/{len(BLOB)}"
    empty = reply(206, b"0\r\n\r\n", content_length="", content_range=where, transfer_encoding="chunked")
    assert isinstance(await fails([empty] * 5, 0, 100), Unreachable)


def quirky(head: bytes) -> Answer:
    """`head` around bytes 10 to 20 of the blob. CR stands for the usual headers."""
    where = b"Content-Range: bytes 10-19/%d\r\n" % len(BLOB)
    return Reply(head.replace(b"CR\r\n", where) + BLOB[10:20], "close")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 206 X\nContent-Length: 10\nCR\r\n\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 10\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 10\r\nCR\r\n\n",
        b"HTTP/1.1  206   X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 \xfc\x01\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.2 206 X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/2.0 206 X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.0 206 X\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\nCR\r\n\r\n",
        b"HTTP/1.0 206 X\nContent-Length: 10\nTransfer-Encoding: chunked\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nX: a\r\n b\r\n\tc\r\nContent-Length:\r\n 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 10\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 00000000000000000000000000000010\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length:\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nX: a\rb\x0b\x0cc\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length : 9\r\nX Y: z\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 10\r\nX Y: z\r\n folded\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nX: \xe4\x02\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 10\r\nCR\r\nContent-Range: bytes 0-9/20\r\n\r\n",
        b"HTTP/1.1 102 X\n\nHTTP/1.1 103 X\r\nLink: x\r\n\r\nHTTP/1.1 206 X\nContent-Length: 10\nCR\r\n\n",
    ],
    ids=lambda head: "",
)
@pytest.mark.parametrize("step", [1, 10_000])
async def test_heads_that_go_accepts(head: bytes, step: int) -> None:
    """Each was tried with Go's net/http. However the bytes are split."""
    answer = quirky(head)
    assert isinstance(answer, Reply)
    got, _ = await read_from([Reply(answer.data, "drip", len(answer.data), 0.0, step)], 10, 20)
    assert got == BLOB[10:20]


@pytest.mark.parametrize(
    "head",
    [
        b"http/1.1 206 X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 2060 X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"\r\nHTTP/1.1 206 X\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\n X: y\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nno colon\r\nContent-Length: 10\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 10\nContent-Length: 11\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\nContent-Length: +10\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\nTransfer-Encoding: gzip, chunked\nCR\r\n\r\n",
        b"HTTP/1.1 206 X\nTransfer-Encoding: identity\nContent-Length: 10\nCR\r\n\r\n",
    ],
    ids=lambda head: "",
)
async def test_heads_that_go_refuses(head: bytes) -> None:
    """Nobody could read them reliably: BadAnswer at once."""
    assert isinstance(await fails([quirky(head)]), BadAnswer)


async def test_a_body_may_look_like_the_end_of_a_head() -> None:
    """A head with bare line feeds ends where it ends, though its body contains what ends other heads."""
    blob = b"\r\n\r\nHTTP/1.1 404 X\r\n\r\n" * 10
    data = b"HTTP/1.1 206 X\nContent-Length: %d\nContent-Range: bytes 0-%d/*\n\n" % (len(blob), len(blob) - 1)
    got, _ = await read_from([data + blob], 0, len(blob), len(blob))
    assert got == blob


async def test_an_odd_head_costs_its_connection() -> None:
    """The reading by h11 and lazyfs is not relied on for the next response."""
    async with serving(Server(lambda _: quirky(b"HTTP/1.1 206 X\nContent-Length: 10\nCR\r\n\n"))) as server:
        server.script = lambda _: Reply(quirky(b"HTTP/1.1 206 X\nContent-Length: 10\nCR\r\n\n").data)  # type: ignore[union-attr]
        async with ranges_of(server.host) as ranges:
            for _ in range(2):
                assert await read(ranges, 10, 20) == BLOB[10:20]
    assert server.connections == 2


@pytest.mark.parametrize("encoding", ["gzip", "aws-chunked", "Identity", "", "x-nonsense"])
async def test_encodings_of_the_content_are_not_looked_at(encoding: str) -> None:
    """Lengths and digests decide: a store may repeat a header that was set with the blob."""
    answer = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}").replace(
        b"\r\n", b"\r\nContent-Encoding: %b\r\n" % encoding.encode(), 1
    )
    got, _ = await read_from([answer], 10, 20)
    assert got == BLOB[10:20]
