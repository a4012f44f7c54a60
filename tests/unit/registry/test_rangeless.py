"""Servers that refuse ranges, and serve the whole blob."""

from __future__ import annotations

import pytest
import trio

from lazyfs.errors import BadAnswer, NotFound, RangeIgnored, SourceError, Unauthorized, Unreachable
from lazyfs.registry.ranges import MAX_SKIP
from tests.unit.registry.one_blob import BLOB, fails, ranged, ranges_of, read, read_from
from tests.unit.registry.scripted import Answer, Request, Server, reply, serving

LONG = bytes(MAX_SKIP) + BLOB
REFUSALS = [400, 403, 405, 406, 412, 416, 417, 501]


def no_ranges(status: int, blob: bytes = BLOB) -> Server:
    """Refuses every request with a Range header."""
    return Server(lambda request: reply(status, b"no") if "range" in request.headers else reply(200, blob))


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_refused_range_is_read_from_the_whole_blob(status: int) -> None:
    """The beginning of a blob, or all of it. The next range of that blob skips the refused request."""
    async with serving(no_ranges(status)) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 0, len(BLOB)) == BLOB
        assert await read(ranges, 100, 200) == BLOB[100:200]
    assert ["range" in request.headers for request in server.requests] == [True, False, False]


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_refused_range_far_into_the_blob_is_an_error(status: int) -> None:
    """As RangeIgnored: the caller decides to stream the blob. It takes two requests, once."""
    async with serving(no_ranges(status, LONG)) as server, ranges_of(server.host) as ranges:
        for _ in range(3):
            with pytest.raises(RangeIgnored):
                await read(ranges, MAX_SKIP + 1, MAX_SKIP + 9, len(LONG))
        assert len(server.requests) == 2
        assert await read(ranges, 0, len(LONG), len(LONG)) == LONG
    assert "range" not in server.requests[-1].headers


@pytest.mark.parametrize(("status", "error"), [(403, Unauthorized), (416, BadAnswer), (501, BadAnswer)])
async def test_a_real_refusal_costs_one_more_request_a_blob(status: int, error: type[SourceError]) -> None:
    """However many ranges are requested, also at once: the whole blob is requested once, never more."""
    async with serving(Server(lambda _: reply(status))) as server, ranges_of(server.host) as ranges:

        async def one(start: int) -> None:
            with pytest.raises(error, match=f"answers {status}"):
                await read(ranges, start, start + 5)

        async with trio.open_nursery() as nursery:
            for start in range(10):
                nursery.start_soon(one, start)
        await one(20)
    assert len(server.requests) == 12
    assert sum("range" not in request.headers for request in server.requests) == 1


async def test_ranges_that_were_refused_are_tried_again_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    """A client of lazyfsd lives long, and a proxy that refused them may be gone. A blob that is refused as a whole stays
    refused."""
    async with serving(no_ranges(403)) as server, ranges_of(server.host) as ranges:
        assert await read(ranges, 0, 9) == await read(ranges, 0, 9)
        await trio.sleep(601)
        server.script = ranged
        assert await read(ranges, 100, 200) == BLOB[100:200]
        assert ["range" in request.headers for request in server.requests] == [True, False, False, True]
    async with serving(Server(lambda _: reply(403))) as server, ranges_of(server.host) as ranges:
        for _ in range(2):
            with pytest.raises(Unauthorized):
                await read(ranges, 0, 9)
            await trio.sleep(601)
    assert ["range" in request.headers for request in server.requests] == [True, False, True]


async def test_many_refused_ranges_wait_for_one_answer() -> None:
    """Ten at once, far into the blob: one of them requests the whole."""
    async with serving(no_ranges(403, LONG)) as server, ranges_of(server.host) as ranges:

        async def one() -> None:
            with pytest.raises(RangeIgnored):
                await read(ranges, MAX_SKIP + 1, MAX_SKIP + 9, len(LONG))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
    assert sum("range" not in request.headers for request in server.requests) == 1


async def test_a_server_in_trouble_has_not_answered_for_the_whole_blob(autojump_clock: trio.testing.MockClock) -> None:
    """503 for the request without a range means nothing: it is repeated."""
    got, server = await read_from([reply(403), reply(503), reply(403), reply(200, BLOB)], 10, 20)
    assert got == BLOB[10:20]
    assert ["range" in request.headers for request in server.requests] == [True, False, True, False]


@pytest.mark.parametrize(
    ("answer", "error"), [(reply(404), NotFound), (reply(200, BLOB[:-1]), BadAnswer), (reply(204), BadAnswer)]
)
async def test_the_answer_to_the_whole_blob_counts(answer: bytes, error: type[SourceError]) -> None:
    """It may say more than the refusal of the range did. Another length means another blob."""
    assert type(await fails([reply(416), answer])) is error


async def test_a_server_that_stumbles_over_ranges(autojump_clock: trio.testing.MockClock) -> None:
    """500 may be temporary, so a range is retried as usual before the whole blob is requested: once, and the result is
    remembered."""
    async with serving(no_ranges(500, LONG)) as server, ranges_of(server.host) as ranges:
        for start in (0, 5):
            assert await read(ranges, start, 100, len(LONG)) == LONG[start:100]
        with pytest.raises(RangeIgnored):
            await read(ranges, MAX_SKIP + 1, len(LONG), len(LONG))
    assert ["range" in request.headers for request in server.requests] == [True] * 5 + [False] * 2
    async with serving(Server(lambda _: reply(500))) as server, ranges_of(server.host) as ranges:
        with pytest.raises(Unreachable, match="answers 500"):
            await read(ranges, 0, 5)
    assert ["range" in request.headers for request in server.requests] == [True] * 5 + [False]


async def test_another_blob_is_tried_by_itself() -> None:
    """A signed URL that refuses ranges of one blob says nothing about the next."""

    def script(request: Request) -> Answer:
        return reply(403)

    async with serving(Server(script)) as server, ranges_of(server.host) as one, ranges_of(server.host) as two:
        for ranges in (one, two):
            with pytest.raises(Unauthorized):
                await read(ranges, 0, 1)
    assert len(server.requests) == 4
