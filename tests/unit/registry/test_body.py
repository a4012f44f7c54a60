"""One range over many responses: cuts, short responses, trickling senders, and when to give up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lazyfs.errors import BadAnswer, HeldOff, NotFound, RangeIgnored, SourceError, Unauthorized, Unreachable
from lazyfs.registry.body import FLOOR, STALL, TRIES
from lazyfs.registry.range_response import MAX_SKIP
from tests.conftest import LogWatch
from tests.unit.registry.one_blob import BLOB, DIGEST, SCOPE, ranged, ranges_of, read
from tests.unit.registry.scripted import Answer, Reply, Request, Server, reply, serving

LONG = BLOB * 30
"""300 KB."""
HEAD_END = b"\r\n\r\n"


def wanted(request: Request) -> tuple[int, int]:
    """`[start, end)` of a range request."""
    start, _, end = request.headers["range"].removeprefix("bytes=").partition("-")
    return int(start), int(end) + 1


def right(request: Request, blob: bytes = BLOB) -> bytes:
    start, end = wanted(request)
    return reply(206, blob[start:end], content_range=f"bytes {start}-{end - 1}/{len(blob)}")


def cut_after(count: int, request: Request, blob: bytes = BLOB) -> Reply:
    """The connection closes after this many bytes of the body."""
    head, end, body = right(request, blob).partition(HEAD_END)
    return Reply(head + end + body[:count], "keep" if count >= len(body) else "close")


def trickling(request: Request, drop: int = 1, pause: float = 1.0, blob: bytes = BLOB) -> Reply:
    """A prompt head, and a body that arrives `drop` bytes at a time."""
    data = right(request, blob)
    return Reply(data, "drip", len(data) - data.index(HEAD_END) - 4, pause, drop)


@pytest.mark.parametrize("count", [1, 9, 1000, 5119])
async def test_a_cut_body_continues_where_it_stopped(count: int, autojump_clock: trio.testing.MockClock) -> None:
    """Many times, without a pause, and each byte is sent once: the reader does not notice."""
    size = min(len(BLOB), 50 * count)
    async with serving(Server(lambda request: cut_after(count, request))) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        assert await read(ranges, 7, size) == BLOB[7:size]
    assert [wanted(request) for request in server.requests] == [(start, size) for start in range(7, size, count)]
    assert trio.current_time() == started


async def test_parts_of_a_cut_body_are_read_in_order() -> None:
    """However the reader's and the sender's parts are cut. `received` counts all of it."""
    async with serving(Server(lambda request: cut_after(700, request))) as server, ranges_of(server.host) as ranges:
        async with ranges.open("blob B", "b", SCOPE, DIGEST, len(BLOB), 3, 10_003) as body:
            got = [bytes(await body.receive_exactly(count)) for count in (1, 699, 1, 1000, 700, 7599)]
            assert body.received == 10_000
    assert b"".join(got) == BLOB[3:10_003]


async def test_five_answers_without_a_byte_are_enough(autojump_clock: trio.testing.MockClock) -> None:
    """A response with bytes resets the count. After that it is the sender's failure, with growing pauses between the tries."""
    cuts = [0, 0, 0, 0, 10, 0, 0, 0, 0, 0]
    async with serving(Server(lambda request: cut_after(cuts.pop(0), request))) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        with pytest.raises(Unreachable, match="the sender broke off with 90 bytes to come"):
            await read(ranges, 0, 100)
    assert not cuts and TRIES == 5
    assert 4 < trio.current_time() - started < 20


async def test_a_registry_that_is_away_for_a_while_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """A body in progress is retried for longer than one that has not begun: seconds, over several rounds."""
    async with serving(Server(lambda request: cut_after(50, request))) as server, ranges_of(server.host) as ranges:
        async with ranges.open("blob B", "b", SCOPE, DIGEST, len(BLOB), 0, 100) as body:
            await body.receive_exactly(10)
            away = trio.current_time() + 8
            server.script = lambda request: ranged(request) if trio.current_time() >= away else Reply(b"", "close")
            assert await body.receive_exactly(90) == BLOB[10:100]


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_short_answer_is_a_beginning(says_so: bool) -> None:
    """A server that caps ranges, in Content-Range or only by the length: the rest is requested on the same connection."""

    def capped(request: Request) -> bytes:
        start, end = wanted(request)
        stop = min(end, start + 1000)
        return reply(206, BLOB[start:stop], content_range=f"bytes {start}-{(stop if says_so else end) - 1}/{len(BLOB)}")

    async with serving(Server(capped)) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 100, 9999) == BLOB[100:9999]
        assert await read(ranges, 5, 6) == BLOB[5:6]
    assert [wanted(request)[0] for request in server.requests] == [*range(100, 9999, 1000), 5]
    assert server.connections == 1


async def test_pieces_that_are_too_small_end_it() -> None:
    """A hostile server that sends one byte per response, cut or not, gets only a few requests plus one for each 4 KiB."""

    def miserly(request: Request) -> bytes:
        start, _ = wanted(request)
        return reply(206, BLOB[start : start + 1], content_range=f"bytes {start}-{start}/{len(BLOB)}")

    scripts = [
        (miserly, BadAnswer, "pieces of under 4096 bytes"),
        (lambda request: cut_after(1, request), Unreachable, "broke off"),
    ]
    for script, error, words in scripts:
        async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
            with pytest.raises(error, match=words):
                await read(ranges, 0, len(BLOB))
        assert len(server.requests) == 64


async def test_a_sender_that_trickles_is_left_for_another_connection(autojump_clock: trio.testing.MockClock) -> None:
    """1 byte/s after a prompt head, from a healthy registry: after 20 s the range continues over another connection."""
    answers: list[Answer] = []

    def script(request: Request) -> Answer:
        answers.append(trickling(request) if not answers else right(request))
        return answers[-1]

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        assert await read(ranges, 0, 5000) == BLOB[:5000]
        assert STALL <= trio.current_time() - started < STALL + 1.5
    assert [wanted(request) for request in server.requests] == [(0, 5000), (19, 5000)]
    assert server.connections == 2


@pytest.mark.parametrize("before", [0, 100_000])
async def test_a_sender_that_trickles_after_a_good_start_is_left_as_soon(
    before: int, autojump_clock: trio.testing.MockClock
) -> None:
    """The last 20 s count, not the average."""

    def script(request: Request) -> Answer:
        if len(server.requests) > 1:
            return right(request, LONG)
        data = right(request, LONG)
        return Reply(data, "drip", len(data) - data.index(HEAD_END) - 4 - before, 1.0)

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        assert await read(ranges, 0, 200_000, len(LONG)) == LONG[:200_000]
        assert STALL <= trio.current_time() - started < STALL + 1.5


async def test_a_sender_that_always_trickles_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Five connections, 100 seconds."""
    async with serving(Server(trickling)) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        with pytest.raises(Unreachable, match="under 4096 bytes came in 20 s"):
            await read(ranges, 0, 5000)
        assert TRIES * STALL <= trio.current_time() - started < TRIES * STALL + 5
    assert len(server.requests) == TRIES


@pytest.mark.parametrize("count", [100, 5000])
async def test_a_body_that_never_begins_is_given_up(count: int, autojump_clock: trio.testing.MockClock) -> None:
    """A head and then nothing, five times, also if less than the floor is wanted."""

    def silent(request: Request) -> Reply:
        return Reply(right(request).partition(HEAD_END)[0] + HEAD_END, "silence")

    async with serving(Server(silent)) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        with pytest.raises(Unreachable, match="under 4096 bytes came in 20 s"):
            await read(ranges, 0, count)
        assert TRIES * STALL <= trio.current_time() - started < TRIES * STALL + 5


async def test_a_slow_line_is_not_a_trickle(autojump_clock: trio.testing.MockClock) -> None:
    """Just over the floor for two minutes, in drops of 1 KiB: one request. A small range may take all of its 20 s."""
    async with serving(Server(lambda request: trickling(request, 1024, 4.5, LONG))) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 0, 30_000, len(LONG)) == LONG[:30_000]
        server.script = lambda request: trickling(request, 10, 1.9)
        assert await read(ranges, 0, 100) == BLOB[:100]
    assert len(server.requests) == 2


async def test_time_in_which_nobody_reads_does_not_count(autojump_clock: trio.testing.MockClock) -> None:
    """A reader that pauses (for a slow disk, or to give way) finds its body as it was."""
    async with serving(Server(lambda request: right(request, LONG))) as server, ranges_of(server.host) as ranges:
        async with ranges.open("blob B", "b", SCOPE, DIGEST, len(LONG), 0, len(LONG)) as body:
            for start in range(0, len(LONG), 1024):
                assert await body.receive_exactly(1024) == LONG[start : start + 1024]
                await trio.sleep(7)
    assert len(server.requests) == 1


async def test_waiting_adds_up_over_small_pieces(autojump_clock: trio.testing.MockClock) -> None:
    """A reader that takes 10 bytes at a time does not give the sender 20 s for each."""

    def script(request: Request) -> Answer:
        return trickling(request) if len(server.requests) == 1 else right(request)

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        started = trio.current_time()
        async with ranges.open("blob B", "b", SCOPE, DIGEST, len(BLOB), 0, len(BLOB)) as body:
            for start in range(0, 1000, 10):
                assert await body.receive_exactly(10) == BLOB[start : start + 10]
        assert STALL <= trio.current_time() - started < STALL + 1.5
    assert [wanted(request)[0] for request in server.requests] == [0, 19]


async def test_the_callers_deadline_covers_all_of_it(autojump_clock: trio.testing.MockClock) -> None:
    """Waiting, pauses and new requests. Nothing stays open."""
    async with serving(Server(trickling)) as server, ranges_of(server.host) as ranges:
        for deadline in (3, 30, 50):
            started = trio.current_time()
            with trio.move_on_after(deadline) as scope:
                await read(ranges, 0, 5000)
            assert scope.cancelled_caught and trio.current_time() == started + deadline
        server.script = ranged
        assert await read(ranges, 0, 5000) == BLOB[:5000]
        await trio.sleep(5)  # abandoned connections notice it at their next byte
        assert server.open == 1


async def test_a_whole_blob_goes_on_from_a_server_that_knows_no_ranges() -> None:
    """The whole blob is sent again, and what was read is skipped. For a range far into the blob, the caller gets an error."""
    blob = bytes(MAX_SKIP) + LONG

    def script(request: Request) -> Answer:
        data = reply(200, blob)
        return Reply(data[: len(data) - len(LONG) // 2], "close") if len(server.requests) == 1 else data

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 0, len(blob), len(blob)) == blob
        assert len(server.requests) == 2
        server.script = lambda request: cut_after(10, request, blob) if len(server.requests) == 3 else reply(200, blob)
        with pytest.raises(RangeIgnored):
            await read(ranges, MAX_SKIP + 1, len(blob), len(blob))


async def test_a_signed_url_that_expires_in_the_middle_is_renewed() -> None:
    """The registry is asked again, with authorization, and the store for the rest of the range."""
    valid = ["one"]

    def stored(request: Request) -> Answer:
        if request.target != f"/{valid[0]}":
            return reply(403, b"expired")
        if valid[0] == "one":
            valid[0] = "two"
            return cut_after(400, request)
        return right(request)

    async with serving(Server(stored)) as store, serving(Server([])) as server, ranges_of(server.host) as ranges:
        server.script = [reply(307, location=f"http://{store.host}/{name}") for name in ("one", "two")]
        assert await read(ranges, 0, 1000) == BLOB[:1000]
    assert [(request.target, wanted(request)[0]) for request in store.requests] == [("/one", 0), ("/one", 400), ("/two", 400)]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(404), NotFound),
        (reply(401), Unauthorized),
        (reply(206, BLOB[60:100], content_range=f"bytes 60-99/{len(BLOB)}"), BadAnswer),
        (reply(206, BLOB[50:100], content_range="bytes 50-99/100"), BadAnswer),
        (reply(200, BLOB[:100]), BadAnswer),
    ],
)
async def test_what_asking_again_meets_ends_it(answer: bytes, error: type[SourceError]) -> None:
    """An error, another range, a shorter blob: at once, and the slot is free again."""

    def script(request: Request) -> Answer:
        return cut_after(50, request) if len(server.requests) == 1 else answer

    async with serving(Server(script)) as server, ranges_of(server.host) as ranges:
        with pytest.raises(error):
            await read(ranges, 0, 100)
        server.script = ranged
        assert await read(ranges, 0, 100) == BLOB[:100]
    assert len(server.requests) == 3


async def test_a_host_that_asks_for_a_pause_gets_it(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """Also in the middle of a body. A pause beyond the reader's deadline ends the body at once."""
    expect_log("no request to it for")
    script: list[Answer] = []
    async with (
        serving(Server(lambda request: script.pop(0) or cut_after(50, request))) as server,
        ranges_of(server.host) as ranges,
    ):
        script[:] = [b"", reply(503, retry_after="5"), b""]
        started = trio.current_time()
        assert await read(ranges, 0, 100) == BLOB[:100]
        assert 5 <= trio.current_time() - started < 8
        script[:] = [b"", reply(503, retry_after="59")]
        started = trio.current_time()
        with pytest.raises(HeldOff), trio.fail_after(50):
            await read(ranges, 0, 100)
    assert trio.current_time() - started < 1
    assert FLOOR == 4096
