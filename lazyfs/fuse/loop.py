"""pyfuse3's main loop, made to survive requests that vanish.

pyfuse3 waits until /dev/fuse is readable and then reads it, blocking, with the GIL held. If the caller whose request
it was has been killed in between, there is nothing to read, and the whole process stands still until the next request
comes: measured, at the fifth killed reader. So the trio that pyfuse3 sees is replaced (it offers that seam for
asyncio) by one whose `wait_readable` looks once more before it returns, with nothing in between that could yield.

That leaves a gap of microseconds. Where the kernel can send unanswered requests again (FUSE_NOTIFY_RESEND, 6.9), the fd
is made non-blocking: a request that vanishes in the gap ends the loop with EAGAIN, the loop begins anew, and the kernel
repeats what it had been asked. Older kernels keep the blocking fd, where the gap costs a pause and not an answer.

When the last user of the file system is gone, nobody waits for what is still being answered: it is cancelled, and the loop ends.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import struct
from typing import Any, Final

import pyfuse3
import trio

_log = logging.getLogger(__name__)
_pyfuse3_log = logging.getLogger("pyfuse3")

_RESEND: Final = struct.pack("<IiQ", 16, 7, 0)
"""fuse_out_header: length, -notify code (FUSE_NOTIFY_RESEND, written as a positive error), unique 0."""


class _Lowlevel:
    """trio.lowlevel, but for `wait_readable`; remembers the fd of the FUSE session."""

    fd = -1

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def wait_readable(self, fd: int) -> None:
        if fd != self.fd:
            self.fd = fd
            if _kernel_resends():
                os.set_blocking(fd, False)
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while True:
            await trio.lowlevel.wait_readable(fd)
            for _, events in ready.poll(0):
                if not events & select.POLLIN:
                    self.ended.set()  # an error: the connection is closed
                return

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _Trio:
    """trio, as pyfuse3 shall see it."""

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


async def serve(max_tasks: int) -> None:
    """Answer the kernel until the mount is gone; `max_tasks` requests at once. pyfuse3.init has been called.

    Cancelled: requests under way are left unanswered.
    """
    seen = _Trio()
    pyfuse3.trio = seen  # type: ignore[attr-defined]
    _pyfuse3_log.addFilter(_is_news)
    try:
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_at_end, seen.lowlevel.ended, nursery.cancel_scope)
                    await pyfuse3.main(max_tasks=max_tasks)
                    nursery.cancel_scope.cancel()
            except* OSError as group:
                if not all(error.errno == errno.EAGAIN for error in _leaves(group)):
                    raise
                _log.info("a request vanished between poll and read: restarting the loop")
                resend(seen.lowlevel.fd)
            else:
                return
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]
        _pyfuse3_log.removeFilter(_is_news)


def resend(fd: int) -> bool:
    """Have the kernel repeat every request that was read from the connection and not answered. False: it cannot (before 6.9)."""
    try:
        os.write(fd, _RESEND)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


async def _cancel_at_end(ended: trio.Event, scope: trio.CancelScope) -> None:
    await ended.wait()
    scope.cancel()


def _is_news(record: logging.LogRecord) -> bool:
    """Not, that the kernel no longer knows a request: its caller was killed while it was answered."""
    return "failed with" not in record.msg or record.args != (os.strerror(errno.ENOENT),)


def _leaves(group: BaseExceptionGroup[OSError]) -> list[OSError]:
    found: list[OSError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _kernel_resends() -> bool:
    """Whether the kernel knows FUSE_NOTIFY_RESEND. By version: to try it would repeat requests."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) >= (6, 9)
