"""Retries, in virtual time."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadAnswer, NotFound, Unreachable
from lazyfs.registry.retry import TRIES, TryAgain, is_transient, retry_after, with_retries


@pytest.mark.parametrize(
    ("value", "expected"), [("", 0), ("7", 7), ("-1", 0), ("soon", 0), ("1" * 30, 0), ("\xb2", 0), ("Mon, 99 Foo 2020", 0)]
)
def test_retry_after_in_seconds(value: str, expected: float) -> None:
    """An invalid value asks for no pause."""
    assert retry_after(value) == expected


def test_retry_after_as_a_date() -> None:
    """The other form that HTTP allows. A past date asks for no pause."""
    now = datetime.now(UTC)
    assert 3500 < retry_after(format_datetime(now + timedelta(hours=1), usegmt=True)) <= 3600
    assert retry_after(format_datetime(now - timedelta(hours=1), usegmt=True)) == 0


@given(
    st.text(max_size=40)
    | st.from_regex(r"\A(Mon, )?[0-9]{1,3} Jan [0-9]{1,6} [0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3} [+-]?[0-9A-Z]{0,9}\Z")
)
def test_any_retry_after_is_a_time(value: str) -> None:
    """Never an exception, never a time in the past."""
    assert retry_after(value) >= 0


def test_what_may_pass() -> None:
    """Trouble of the server, not of the request."""
    assert [status for status in range(100, 600) if is_transient(status)] == [408, 429, 500, 502, 503, 504]


async def test_pauses_grow_and_end(autojump_clock: trio.testing.MockClock) -> None:
    """Each pause is between once and one and a half times the doubling base."""
    times = []

    async def fail() -> TryAgain:
        times.append(trio.current_time())
        return TryAgain(Unreachable("it is away"))

    with pytest.raises(Unreachable, match="it is away"):
        await with_retries("it", fail)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == TRIES
    for number, pause in enumerate(pauses):
        assert 0.2 * 2**number <= pause <= 0.3 * 2**number


async def test_an_unreachable_counts_as_later(autojump_clock: trio.testing.MockClock) -> None:
    """A broken connection is retried."""
    left = [Unreachable("a"), Unreachable("b")]

    async def attempt() -> str:
        if left:
            raise left.pop()
        return "done"

    assert await with_retries("it", attempt) == "done"


@pytest.mark.parametrize("error", [BadAnswer("x"), NotFound("x"), ValueError("x")])
async def test_all_else_is_said_at_once(error: Exception) -> None:
    """Without a second try."""
    calls = []

    async def attempt() -> str:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        await with_retries("it", attempt)
    assert len(calls) == 1


async def test_one_deadline_for_all_tries(autojump_clock: trio.testing.MockClock) -> None:
    """Tries that hang share it. The last error is the cause."""

    async def attempt() -> TryAgain:
        await trio.sleep(12)
        return TryAgain(Unreachable("slow"))

    start = trio.current_time()
    with pytest.raises(Unreachable, match="it did not answer within 30 s") as caught:
        await with_retries("it", attempt)
    assert trio.current_time() - start == pytest.approx(30)
    assert isinstance(caught.value.__cause__, Unreachable)


async def test_no_pause_beyond_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """If a try could not be made in time, it is not waited for."""
    start = trio.current_time()

    async def attempt() -> TryAgain:
        return TryAgain(Unreachable("busy"))

    with pytest.raises(Unreachable, match="busy"):
        await with_retries("it", attempt, deadline=0.1)
    assert trio.current_time() == start
