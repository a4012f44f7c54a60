"""Redirects of ranges: signed URLs that are kept and resolved again, loops, and who must not get Authorization."""

from __future__ import annotations

import pytest
import trio.testing

from lazyfs.errors import BadAnswer, SourceError
from tests.unit.registry.one_blob import BLOB, DIGEST, fails, ranged, ranges_of, read, read_from
from tests.unit.registry.scripted import Request, Server, reply, serving


async def test_a_signed_url_is_kept_and_gets_no_authorization() -> None:
    """One redirect for many ranges. The store never sees the registry's authorization."""
    async with serving(Server(ranged)) as store, serving(Server([])) as server, ranges_of(server.host) as ranges:
        server.script = [
            reply(401, www_authenticate='Basic realm="x"'),
            reply(307, location=f"http://{store.host}/blob?signature=SECRET"),
        ]
        for start in (0, 10, 20):
            assert await read(ranges, start, start + 5) == BLOB[start : start + 5]
    assert server.requests[1].headers["authorization"] == "Basic dTpw"
    assert [request.target for request in store.requests] == ["/blob?signature=SECRET"] * 3
    assert all("authorization" not in request.headers for request in store.requests)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_an_expired_signed_url_is_resolved_again(status: int) -> None:
    """However the store reports it, the registry is asked once more. If a second refusal may be about the range, the whole blob
    is requested."""
    signature = ["one"]

    def stored(request: Request) -> bytes:
        return ranged(request) if request.target == f"/{signature[0]}" else reply(status, b"expired")

    async with serving(Server(stored)) as store, serving(Server([])) as server, ranges_of(server.host) as ranges:
        server.script = [reply(307, location=f"http://{store.host}/{name}") for name in ("one", "two", "three", "four")]
        await read(ranges, 0, 5)
        signature[0] = "two"
        assert await read(ranges, 5, 9) == BLOB[5:9]
        signature[0] = "none"
        with pytest.raises(SourceError, match=f"answers {status}") as caught:
            await read(ranges, 5, 9)
    ranges_sent = ["range" in request.headers for request in server.requests]
    assert ranges_sent == [True] * 3 + [False] * (status in {400, 403})
    assert not any(name in str(caught.value) for name in ("three", "four")), "a signed URL is a secret"


async def test_a_store_that_went_away_is_resolved_again(autojump_clock: trio.testing.MockClock) -> None:
    """The registry may name another store."""
    async with serving(Server([])) as server, ranges_of(server.host) as ranges:
        async with serving(Server(ranged)) as store:
            server.script = [reply(307, location=f"http://{store.host}/a")]
            await read(ranges, 0, 5)
        async with serving(Server(ranged)) as other:
            server.script = [reply(307, location=f"http://{other.host}/b")]
            assert await read(ranges, 5, 9) == BLOB[5:9]


async def test_a_connection_that_delivered_wrong_bytes_is_not_used_again() -> None:
    """Neither the signed URL nor the connection: a cache on the way, or a connection out of step, would deliver the same again."""
    async with serving(Server(ranged)) as store, serving(Server([])) as server, ranges_of(server.host) as ranges:
        server.script = [reply(307, location=f"http://{store.host}/{name}") for name in ("one", "two")]
        for start in (0, 5):
            await read(ranges, start, start + 5)
        assert store.connections == 1
        ranges.distrust(DIGEST)
        assert await read(ranges, 10, 15) == BLOB[10:15]
        assert [request.target for request in store.requests] == ["/one", "/one", "/two"]
        assert store.connections == server.connections == 2


async def test_redirects_in_a_circle_end() -> None:
    """To itself, and through another URL."""
    async with serving(Server(lambda request: reply(302, location=request.target))) as server, ranges_of(server.host) as ranges:
        with pytest.raises(BadAnswer, match="in a circle"):
            await read(ranges, 0, 5)
    async with serving(Server([])) as one, serving(Server([])) as two, ranges_of(one.host) as ranges:
        one.script = lambda request: reply(302, location=f"http://{two.host}{request.target}")
        two.script = lambda request: reply(302, location=f"http://{one.host}{request.target}")
        with pytest.raises(BadAnswer, match="in a circle"):
            await read(ranges, 0, 5)


async def test_redirects_without_end_end() -> None:
    """Ten are followed, an eleventh is not."""
    steps = [reply(301, location=f"/step{number}") for number in range(10)]
    got, _ = await read_from([*steps, reply(200, BLOB)], 0, 5)
    assert got == BLOB[:5]
    assert "more than 10 times" in str(await fails([*steps, reply(301, location="/step10")]))


async def test_a_url_may_redirect_to_itself_for_a_while() -> None:
    """Until it is ready. Go's clients ask again too."""
    steps = [reply(307, location=f"/v2/r/blobs/{DIGEST}") for _ in range(3)]
    got, _ = await read_from([*steps, reply(200, BLOB)], 0, 5)
    assert got == BLOB[:5]
