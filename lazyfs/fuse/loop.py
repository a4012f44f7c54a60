"""Makes pyfuse3's main loop survive requests that vanish.

pyfuse3 waits until /dev/fuse is readable and then reads it, blocking, with the GIL held. If the caller was
killed in between, there is nothing to read, and the whole process hangs until the next request: measured, at the fifth killed
reader. So the trio that pyfuse3 sees is replaced (it offers that hook for asyncio) by one whose `wait_readable` polls once more
before it returns, with no checkpoint in between.

That leaves a gap of microseconds. If the kernel can resend unanswered requests (FUSE_NOTIFY_RESEND, 6.9), the fd is made
non-blocking: a request that vanishes in the gap ends the loop with EAGAIN, the loop starts again, and the kernel resends the
requests that were being answered. Older kernels keep the blocking fd, where the gap costs a pause but no reply.

When the last user of the file system is gone, requests still being answered are cancelled, and the loop ends.
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
    """trio.lowlevel with another `wait_readable`; remembers the fd of the FUSE session."""

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
    """trio as pyfuse3 sees it."""

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


async def serve(max_tasks: int) -> None:
    """Answer the kernel until the mount is gone, `max_tasks` requests at once. pyfuse3.init must have been called.

    Cancelled: requests in progress are left unanswered.
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
    """Make the kernel resend every request that was read from the connection but not answered. False if it cannot (before 6.9)."""
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
    """False for pyfuse3's message that the kernel no longer knows a request: its caller was killed in the meantime."""
    return "failed with" not in record.msg or record.args != (os.strerror(errno.ENOENT),)


def _leaves(group: BaseExceptionGroup[OSError]) -> list[OSError]:
    found: list[OSError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _kernel_resends() -> bool:
    """Whether the kernel has FUSE_NOTIFY_RESEND. Judged by version: trying it would resend requests."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) >= (6, 9)
