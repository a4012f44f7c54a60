"""The hooks that other tests rely on: trio for async tests, virtual time, and the watch over the log."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from tests.conftest import LogWatch

log = logging.getLogger("lazyfs.test")


async def test_async_tests_run_under_trio() -> None:
    """The body really runs, inside trio."""
    assert trio.lowlevel.current_task() is not None


async def test_clock_jumps(autojump_clock: trio.testing.MockClock) -> None:
    """An hour passes at once."""
    start = trio.current_time()
    await trio.sleep(3600)
    assert trio.current_time() - start == pytest.approx(3600)


def test_expected_warning_passes(expect_log: LogWatch) -> None:
    """A warning that was announced is fine."""
    expect_log("shelf .* is full")
    log.warning("shelf %d is full", 7)


def test_surprising_warning_fails() -> None:
    """A warning that nobody announced is an assertion error, and names itself."""
    watch = LogWatch()
    watch.emit(log.makeRecord("lazyfs.test", logging.WARNING, "", 0, "surprise", (), None))
    with pytest.raises(AssertionError, match="surprise"):
        watch.check()


def test_vain_expectation_fails() -> None:
    """An announced warning that did not come is an assertion error as well."""
    watch = LogWatch()
    watch("never")
    with pytest.raises(AssertionError, match="never"):
        watch.check()
