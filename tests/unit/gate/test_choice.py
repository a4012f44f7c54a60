"""The choice between several ways to one object, in virtual time."""

from __future__ import annotations

from typing import NamedTuple, cast

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import DigestMismatch, LazyfsError, Unreachable
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.gate.catalog import Supply
from lazyfs.gate.choice import Choice

HOPE = 1.0


class Received(NamedTuple):
    """What a fetcher tells of itself, as far as it matters here."""

    received: int


class Source:
    """Stands for a fetcher: brings after so many seconds, or fails then; a busy one receives something all the while."""

    def __init__(self, seconds: float, error: LazyfsError | None = None, *, busy: bool = False) -> None:
        self.seconds, self.error, self.busy = seconds, error, busy
        self.asked = 0
        self.began = -1.0

    def statistics(self) -> Received:
        return Received(int(trio.current_time() * 100) if self.busy else 0)

    async def bring(self) -> str:
        self.asked += 1
        if self.began < 0:
            self.began = trio.current_time()  # what is under way goes on, whoever waits for it
        await trio.sleep_until(self.began + self.seconds)
        if self.error:
            raise self.error
        return f"after {self.seconds:g} s"


def supplies(*sources: Source) -> list[Supply]:
    return [cast("Supply", Supply(cast("Fetcher", source), None, ())) for source in sources]  # type: ignore[arg-type]


async def bring(supply: Supply) -> str:
    return await cast("Source", supply.fetcher).bring()


async def test_the_first_is_enough(autojump_clock: MockClock) -> None:
    """The others are not asked; the only one is waited for as long as it takes."""
    quick, other, slow = Source(0.9), Source(0), Source(100)
    assert await Choice().take(supplies(quick, other), bring, HOPE) == "after 0.9 s"
    assert not other.asked
    assert await Choice().take(supplies(slow), bring, HOPE) == "after 100 s"


async def test_failure_is_passed_over(autojump_clock: MockClock) -> None:
    """Whether it is a registry that is away or one that lies. The first error is told where all fail."""
    bad = [Source(0.1, Unreachable("away")), Source(0.1, DigestMismatch("lies"))]
    assert await Choice().take(supplies(*bad, Source(0.5)), bring, HOPE) == "after 0.5 s"
    with pytest.raises(Unreachable, match="away"):
        await Choice().take(supplies(*bad), bring, HOPE)


async def test_silence_is_passed_over_and_remembered(autojump_clock: MockClock) -> None:
    """After a moment the next one is asked, and from then on first, for a while."""
    choice, silent, other = Choice(), Source(1e9), Source(0)
    began = trio.current_time()
    for _ in range(5):
        assert await choice.take(supplies(silent, other), bring, HOPE) == "after 0 s"
    assert trio.current_time() - began == pytest.approx(HOPE)
    assert silent.asked == 1
    await trio.sleep(60)
    await choice.take(supplies(silent, other), bring, HOPE)
    assert silent.asked == 2


async def test_slow_is_not_silent(autojump_clock: MockClock) -> None:
    """As long as anything arrives from it, it is waited for."""
    slow, other = Source(10, busy=True), Source(0)
    assert await Choice().take(supplies(slow, other), bring, HOPE) == "after 10 s"
    assert not other.asked


async def test_the_silent_one_after_all(autojump_clock: MockClock) -> None:
    """Where the others fail or are silent too, it is waited for."""
    for other in (Source(0.5, Unreachable("away")), Source(1e9)):
        assert await Choice().take(supplies(Source(20), other), bring, HOPE) == "after 20 s"
