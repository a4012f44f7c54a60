"""Retry-After: no request before that time, and an error at once for callers that cannot wait so long."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lazyfs.errors import HeldOff
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.holdoff import MAX_HOLDOFF, Holdoffs, shared_holdoffs
from lazyfs.registry.url import parse_url
from tests.conftest import LogWatch
from tests.unit.registry.one_blob import BLOB, DIGEST, SCOPE, ranged, ranges_of, read, read_from
from tests.unit.registry.scripted import Answer, Request, Server, reply, serving

REGISTRY = parse_url("https://registry.test/v2/", "it")
STORE = parse_url("https://store.test/", "it")


async def test_retry_after_is_obeyed(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """Within the deadline, the pause is waited for. A read whose deadline ends earlier fails at once, and says when."""
    expect_log("answered 429: no request to it for 7 s")
    good = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    started = trio.current_time()
    await read_from([reply(429, retry_after="7"), good], 10, 20)
    assert 7 <= trio.current_time() - started <= 9
    expect_log("answered 503: no request to it for 60 s")
    started = trio.current_time()
    with pytest.raises(HeldOff, match=r"answers 503, and may be asked again in (59|60) s") as caught, trio.fail_after(50):
        await read_from([reply(503, retry_after="3600")], 10, 20)
    assert trio.current_time() - started < 1
    assert caught.value.until == pytest.approx(started + MAX_HOLDOFF, abs=1)


async def test_a_long_pause_is_waited_for_if_the_reader_can(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """A pause that is longer than one request waits and shorter than a read's minute, but never beyond the caller's deadline."""
    expect_log("no request to it for")
    good = reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    started = trio.current_time()
    await read_from([reply(429, retry_after="45"), good], 10, 20)
    assert 45 <= trio.current_time() - started < 60
    started = trio.current_time()
    with pytest.raises(HeldOff), trio.fail_after(44):
        await read_from([reply(429, retry_after="45")], 10, 20)
    assert trio.current_time() - started < 1


async def test_the_longest_pause_is_waited_for_without_a_reader(
    autojump_clock: trio.testing.MockClock, expect_log: LogWatch
) -> None:
    """A conversion or a mount has no deadline: it waits twice, as documents do. A range with a reader's deadline does not wait
    beyond it, though no cancel scope enforces that: a run outlives its reader."""
    expect_log("no request to it for 60 s")
    busy, good = reply(503, retry_after="3600"), reply(206, BLOB[10:20], content_range=f"bytes 10-19/{len(BLOB)}")
    started = trio.current_time()
    assert (await read_from([busy, busy, good], 10, 20))[0] == BLOB[10:20]
    assert 120 <= trio.current_time() - started < 125
    async with serving(Server([busy] * 4)) as server, ranges_of(server.host) as ranges:
        with pytest.raises(HeldOff):
            await read(ranges, 10, 20)
        assert len(server.script) == 1
        started = trio.current_time()
        with pytest.raises(HeldOff):
            async with ranges.open("B", f"r/blobs/{DIGEST}", SCOPE, DIGEST, len(BLOB), 10, 20, started + 59):
                pass
        assert trio.current_time() - started < 1


async def test_a_document_outlasts_a_long_pause(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """Longer than one request waits for a response, as skopeo does, but not forever. The caller's own deadline applies at once."""
    expect_log("no request to it for 50 s")
    busy = reply(429, retry_after="50")
    async with serving(Server([busy, busy, reply(200, b"x"), busy, busy, busy, busy])) as server:
        client = RegistryClient(server.host, AccessOptions())
        url = client.url("a/manifests/x")
        started = trio.current_time()
        assert (await client.ask("it", "GET", url, (), limit=9)).body == b"x"
        assert trio.current_time() - started >= 100
        with pytest.raises(HeldOff):
            await client.ask("it", "GET", url, (), limit=9)
        assert len(server.script) == 1
        await trio.sleep(50)
        started = trio.current_time()
        with pytest.raises(HeldOff), trio.fail_after(40):
            await client.ask("it", "GET", url, (), limit=9)
        assert trio.current_time() - started < 1
        await client.aclose()


async def test_no_request_to_a_host_during_its_holdoff(
    autojump_clock: trio.testing.MockClock, expect_log: LogWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten readers of two clients. Logged once, however often the host asks."""
    expect_log("no request to it for")
    times: list[float] = []
    refusals = [reply(429, retry_after="9"), reply(429, retry_after="9")]

    def script(request: Request) -> Answer:
        times.append(trio.current_time() - started)
        return refusals.pop() if refusals else ranged(request)

    started = trio.current_time()
    async with serving(Server(script)) as server, ranges_of(server.host) as one, ranges_of(server.host) as two:

        async def late(number: int) -> None:
            await trio.sleep(number / 2)
            assert await read((one, two)[number % 2], 10, 20) == BLOB[10:20]

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(late, number)
    assert times[0] == 0 and 9 <= times[1] < 11
    assert all(when >= times[1] + 9 for when in times[2:])
    assert len(times) == 12
    assert len(caplog.messages) == 1


async def test_a_store_that_is_held_off_does_not_stop_the_registry(
    autojump_clock: trio.testing.MockClock, expect_log: LogWatch
) -> None:
    """It applies to a host and port: other blobs come from elsewhere meanwhile."""
    expect_log("no request to it for")
    async with serving(Server([reply(503, retry_after="3600")])) as store, serving(Server([])) as server:
        async with ranges_of(server.host) as ranges:
            server.script = [reply(307, location=f"http://{store.host}/a")] * 2
            with pytest.raises(HeldOff, match=store.host), trio.fail_after(50):
                await read(ranges, 0, 5)
            server.script = ranged
            assert await read(ranges, 0, 5) == BLOB[:5]
    assert len(store.requests) == 1


async def test_the_callers_deadline_counts(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """If a deadline around the call makes the wait useless, it fails before waiting. A sufficient deadline does not."""
    expect_log("no request to it for")
    holdoffs = Holdoffs()
    holdoffs.note("it", REGISTRY, 429, "20")
    started = trio.current_time()
    with pytest.raises(HeldOff, match=r"blob B: registry\.test answers 429, and may be asked again in 20 s"), trio.fail_after(19):
        await holdoffs.wait("blob B", REGISTRY)
    assert trio.current_time() == started
    with trio.fail_after(20.001):
        await holdoffs.wait("blob B", REGISTRY)
    assert trio.current_time() >= started + 20
    assert not holdoffs.applies_to(REGISTRY)


async def test_responses_without_a_holdoff(autojump_clock: trio.testing.MockClock, expect_log: LogWatch) -> None:
    """Other statuses, no Retry-After or an invalid one, and other hosts. A shorter pause does not replace a longer one."""
    holdoffs = Holdoffs()
    for status, value in ((429, ""), (503, "soon"), (429, "0"), (500, "9"), (200, "9"), (403, "9")):
        holdoffs.note("it", REGISTRY, status, value)
    assert not holdoffs.applies_to(REGISTRY)
    expect_log("no request to it for")
    holdoffs.note("it", REGISTRY, 429, "20")
    holdoffs.note("it", REGISTRY, 429, "2")
    assert holdoffs.applies_to(REGISTRY) and not holdoffs.applies_to(STORE)
    started = trio.current_time()
    await holdoffs.wait("it", STORE)
    assert trio.current_time() == started
    await holdoffs.wait("it", REGISTRY)
    assert trio.current_time() >= started + 20


async def test_the_record_is_bounded(expect_log: LogWatch) -> None:
    """Redirects can lead to any number of hosts."""
    expect_log("no request to it for")
    holdoffs = Holdoffs()
    for number in range(1000):
        holdoffs.note("it", parse_url(f"https://h{number}.test/", "it"), 429, "20")
    assert len(holdoffs._until) == len(holdoffs._status) == 256


async def test_one_record_for_all_sessions() -> None:
    """Within one trio run."""
    assert shared_holdoffs() is shared_holdoffs()
