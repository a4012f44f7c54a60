"""The loop around pyfuse3, without a mount: a wake-up that comes too late is not a wake-up."""

from __future__ import annotations

import errno
import os
import select

import pyfuse3
import pytest
import trio
import trio.testing

from lazyfs.fuse import loop


async def test_wait_readable_returns_only_with_something_to_read() -> None:
    """Another reader of the same pipe is woken in the same pass and may empty it first; trio draws the order by lot."""
    reading, writing = os.pipe()
    other = os.dup(reading)
    seen = loop._Lowlevel()
    returned: list[bool] = []

    async def thief() -> None:
        await trio.lowlevel.wait_readable(other)
        if select.select([other], [], [], 0)[0]:
            os.read(other, 1)

    async def waiter() -> None:
        await seen.wait_readable(reading)
        returned.append(bool(select.select([reading], [], [], 0)[0]))

    try:
        for _ in range(40):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter)
                nursery.start_soon(thief)
                await trio.testing.wait_all_tasks_blocked()
                os.write(writing, b"x")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            os.set_blocking(reading, False)
            with pytest.raises(BlockingIOError):
                os.read(reading, 100)
    finally:
        for fd in (reading, writing, other):
            os.close(fd)
    assert returned and all(returned)


@pytest.mark.parametrize("release", ["6.9.0-amd64", "6.18.44-fc", "7.0"])
def test_new_kernels_send_again(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE_NOTIFY_RESEND came with 6.9."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", release, "", "")))
    assert loop._kernel_resends()


@pytest.mark.parametrize("release", ["6.8.12", "5.10.0", "unknown"])
def test_old_kernels_do_not(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what we cannot read a version from."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", release, "", "")))
    assert not loop._kernel_resends()


async def test_vanished_request_begins_the_loop_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN out of pyfuse3.main asks the kernel to repeat, and main runs again; trio is put back at the end."""
    reading, writing = os.pipe()
    calls = []

    async def main(max_tasks: int) -> None:
        calls.append(max_tasks)
        if len(calls) == 1:
            pyfuse3.trio.lowlevel.fd = writing  # type: ignore[attr-defined]
            raise ExceptionGroup("nursery", [ExceptionGroup("inner", [OSError(errno.EAGAIN, "vanished")])])

    monkeypatch.setattr(pyfuse3, "main", main)
    try:
        await loop.serve(7)
        assert os.read(reading, 100) == loop._RESEND
    finally:
        os.close(reading)
        os.close(writing)
    assert calls == [7, 7]
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]


async def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only EAGAIN is a vanished request."""

    async def main(max_tasks: int) -> None:
        raise ExceptionGroup("nursery", [OSError(errno.EIO, "broken"), OSError(errno.EAGAIN, "vanished")])

    monkeypatch.setattr(pyfuse3, "main", main)
    with pytest.raises(ExceptionGroup):
        await loop.serve(1)
