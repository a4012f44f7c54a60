"""Failover between several supplies of one object, in virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import DigestMismatch, LazyfsError, LocalError, Unreachable
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece
from lazyfs.gate.catalog import Supply
from lazyfs.gate.failover import Failover
from lazyfs.tasks import Failures
from tests.conftest import LogWatch

TIMEOUT = 1.0
LAYER = cast("LayerBlob", SimpleNamespace(digest="sha256:abc"))


class Source:
    """A fetcher: delivers after so many seconds, or fails then. Until `busy` it shows signs of life."""

    def __init__(self, seconds: float, error: Exception | None = None, *, busy: float = 0) -> None:
        self.image = "docker://registry.test/image"
        self.seconds, self.error, self.busy = seconds, error, busy
        self.asked = 0
        self.began = -1.0
        self._passed_over = -math.inf

    def signs_of_life(self, pieces: Sequence[Piece]) -> int:
        return int(100 * min(trio.current_time() - self.began, self.busy)) if self.asked else 0

    def pass_over(self, pieces: Sequence[Piece]) -> None:
        self._passed_over = trio.current_time()

    @property
    def is_passed_over(self) -> bool:
        return trio.current_time() - self._passed_over < 30

    async def fetch(self) -> str:
        self.asked += 1
        if self.began < 0:
            self.began = trio.current_time()  # the fetch continues, whoever waits for it
        await trio.sleep_until(self.began + self.seconds)
        if self.error:
            raise self.error
        return f"after {self.seconds:g} s"


def supplies(*sources: Source) -> list[Supply]:
    return [cast("Supply", Supply(cast("Fetcher", source), LAYER, ())) for source in sources]


async def fetch(supply: Supply) -> str:
    return await cast("Source", supply.fetcher).fetch()


async def run(failover: Failover, *sources: Source) -> str:
    return await failover.run(supplies(*sources), slice(1), fetch, TIMEOUT)


async def test_the_first_is_enough(autojump_clock: MockClock) -> None:
    """The others are not asked. A single source is waited for as long as it takes."""
    quick, other, slow = Source(0.9), Source(0), Source(100)
    assert await run(Failover(Failures()), quick, other) == "after 0.9 s"
    assert not other.asked
    assert await run(Failover(Failures()), slow) == "after 100 s"


async def test_failure_is_passed_over(autojump_clock: MockClock) -> None:
    """Whether a registry is unreachable or delivers wrong bytes. If all fail, the first error is raised."""
    bad = [Source(0.1, Unreachable("away")), Source(0.1, DigestMismatch("lies"))]
    assert await run(Failover(Failures()), *bad, Source(0.5)) == "after 0.5 s"
    with pytest.raises(Unreachable, match="away"):
        await run(Failover(Failures()), *bad)


@pytest.mark.parametrize("surprise", [RuntimeError("surprise"), MemoryError("surprise"), ExceptionGroup("several", [OSError(5)])])
@pytest.mark.parametrize("seconds", [0.1, 1.5 * TIMEOUT], ids=["at once", "while the next one is asked"])
async def test_a_surprise_is_the_failure_of_its_source(
    surprise: Exception, seconds: float, autojump_clock: MockClock, expect_log: LogWatch
) -> None:
    """The next source answers. Where there is none, or all fail, the reader gets an error that knows its errno."""
    failures = Failures()
    assert await run(Failover(failures), Source(seconds, surprise), Source(2)) == "after 2 s"
    with pytest.raises(LocalError, match="image: a request failed unexpectedly"):
        await run(Failover(failures), Source(seconds, surprise))
    with pytest.raises(LazyfsError):
        await run(Failover(failures), Source(seconds, surprise), Source(2, Unreachable("away")))
    assert failures.counts() == {"request to a source": 3}
    expect_log("request to a source of layer sha256:abc of docker://registry.test/image has failed")


async def test_silence_is_passed_over_and_remembered(autojump_clock: MockClock) -> None:
    """After a moment the next one is asked, and from then on it is asked first for a while."""
    failover, silent, other = Failover(Failures()), Source(1e9), Source(0)
    began = trio.current_time()
    for _ in range(5):
        assert await run(failover, silent, other) == "after 0 s"
    assert trio.current_time() - began == pytest.approx(TIMEOUT)
    asked = silent.asked
    await trio.sleep(60)
    await run(failover, silent, other)
    assert silent.asked > asked


async def test_slow_is_not_silent(autojump_clock: MockClock) -> None:
    """A source that shows signs of life is waited for alone three times as long."""
    slow, other = Source(2.5 * TIMEOUT, busy=10), Source(0)
    assert await run(Failover(Failures()), slow, other) == "after 2.5 s"
    assert not other.asked


@pytest.mark.parametrize(("busy", "patience"), [(1000, 3 * TIMEOUT), (1.5 * TIMEOUT, 3 * TIMEOUT), (0.5 * TIMEOUT, 2 * TIMEOUT)])
async def test_a_trickling_source_delays_readers_only_briefly(autojump_clock: MockClock, busy: float, patience: float) -> None:
    """A hostile image: the other source is asked after three timeouts, or after one without a sign of life."""
    trickle, other = Source(1000, busy=busy), Source(1)
    failover, began = Failover(Failures()), trio.current_time()
    assert await run(failover, trickle, other) == "after 1 s"
    assert trio.current_time() - began == pytest.approx(patience + 1)
    await run(failover, trickle, other)
    assert trio.current_time() - began == pytest.approx(patience + 1), "it is remembered"


async def test_the_first_is_still_waited_for(autojump_clock: MockClock) -> None:
    """Asking a second source cancels nothing: the first result is taken, and one failure is not the end."""
    began = trio.current_time()
    for other in (Source(1e9), Source(0.5, Unreachable("away"))):
        assert await run(Failover(Failures()), Source(1.5 * TIMEOUT), other) == "after 1.5 s"
    assert trio.current_time() - began == pytest.approx(3 * TIMEOUT)
    with pytest.raises(DigestMismatch, match="lies"):
        await run(Failover(Failures()), Source(5, Unreachable("away")), Source(2, DigestMismatch("lies")))


async def test_every_source_is_tried(autojump_clock: MockClock) -> None:
    """Of four sources, of which three are silent, the last one answers after three waits."""
    began = trio.current_time()
    assert await run(Failover(Failures()), Source(1e9), Source(1e9), Source(1e9), Source(0.5)) == "after 0.5 s"
    # The second and third were not waited for before, and have a timeout each.
    assert trio.current_time() - began == pytest.approx(3 * TIMEOUT + 0.5)


async def test_the_silent_one_after_all(autojump_clock: MockClock) -> None:
    """If the others fail or are silent too, it is waited for."""
    for other in (Source(0.5, Unreachable("away")), Source(1e9)):
        assert await run(Failover(Failures()), Source(20), other) == "after 20 s"
