"""The guard: every failure becomes an errno, and a line in the log that does not repeat itself."""

from __future__ import annotations

import errno

import pytest
import trio
from pyfuse3 import FUSEError

from lazyfs.errors import LazyfsError, StoreFull, Unreachable
from lazyfs.fuse.guard import guarded
from tests.conftest import LogWatch


class Handlers:
    """What pyfuse3 would call."""

    @guarded
    async def fail(self, error: Exception) -> int:
        raise error

    @guarded
    async def succeed(self, value: int) -> int:
        return value


async def test_answers_pass() -> None:
    """What goes well goes through."""
    assert await Handlers().succeed(7) == 7


@pytest.mark.parametrize(("error", "number"), [(Unreachable("no registry"), errno.EIO), (StoreFull("no room"), errno.ENOSPC)])
async def test_errors_of_ours(error: LazyfsError, number: int, expect_log: LogWatch) -> None:
    """A LazyfsError is its errno, and its message is logged."""
    expect_log(str(error))
    with pytest.raises(FUSEError) as caught:
        await Handlers().fail(error)
    assert caught.value.errno == number


async def test_surprises(expect_log: LogWatch) -> None:
    """Anything else is EIO, and logged as what it is: the mount lives on."""
    expect_log("unexpected error in fail")
    with pytest.raises(FUSEError) as caught:
        await Handlers().fail(ZeroDivisionError("oops"))
    assert caught.value.errno == errno.EIO


async def test_answers_with_an_errno() -> None:
    """An errno that a handler chose is its answer, and no news."""
    with pytest.raises(FUSEError) as caught:
        await Handlers().fail(FUSEError(errno.ENODATA))
    assert caught.value.errno == errno.ENODATA


async def test_same_trouble_is_reported_once(
    autojump_clock: trio.testing.MockClock, expect_log: LogWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel asks again and again; half a minute later it is worth a line again."""
    expect_log("the same trouble")
    for _ in range(3):
        with pytest.raises(FUSEError):
            await Handlers().fail(Unreachable("the same trouble"))
    assert caplog.text.count("the same trouble") == 1
    await trio.sleep(31)
    with pytest.raises(FUSEError):
        await Handlers().fail(Unreachable("the same trouble"))
    assert caplog.text.count("the same trouble") == 2
