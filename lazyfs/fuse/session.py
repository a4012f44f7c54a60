"""libfuse without its own mount: pyfuse3's session, connected to a socket first and then to /dev/fuse.

libfuse uses a descriptor as its FUSE device if the mount point is called `/dev/fd/N`. So it gets one end of a socket pair,
receives through it the FUSE_INIT that the kernel sent, perhaps to an earlier process, and replies. Then the kernel's connection
replaces the socket under the same descriptor number. This way libfuse's reply can be compared with the one that the kernel got, and
changed: libfuse 3.14 does not know the flags below.

Source: fuse(4); include/uapi/linux/fuse.h for the two messages.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, Self

import pyfuse3
import trio

from lazyfs.errors import MountFailed
from lazyfs.fuse.loop import resend, serve

_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_INIT: Final = 26
_FLAGS_ASKED: Final = _IN_HEADER.size + 12
_FLAGS_ANSWERED: Final = _OUT_HEADER.size + 12
_LIMITS: Final = struct.Struct("<HH")
_LIMITS_ANSWERED: Final = _OUT_HEADER.size + 16

_PARALLEL_DIROPS: Final = 1 << 18
"""Without it the kernel looks up one name at a time in a directory: 1,280 misses of 20 ms took 27 s instead of one."""
_CACHE_SYMLINKS: Final = 1 << 23
_MAX_BACKGROUND: Final = 4096
_CONGESTED: Final = 3072
"""Read-ahead requests that may wait at once in the whole connection: stalled readers of one registry do not block the others."""
_MAX_TASKS: Final = 5000
"""More than _MAX_BACKGROUND, so that a lookup is always read."""
_DEADLINE: Final = 10.0


def is_init(request: bytes) -> bool:
    """Whether a request read from /dev/fuse is the kernel's FUSE_INIT."""
    return len(request) >= _FLAGS_ASKED + 4 and _IN_HEADER.unpack_from(request)[1] == _INIT


def is_answer(message: bytes) -> bool:
    """Whether a message is an answer that agrees to a FUSE_INIT."""
    return len(message) >= _LIMITS_ANSWERED + _LIMITS.size and _OUT_HEADER.unpack_from(message)[:2] == (len(message), 0)


def patched(asked: bytes, answered: bytes) -> bytes:
    """libfuse's reply to the FUSE_INIT `asked` as the kernel gets it: with the flags that both lazyfs and the kernel support."""
    message = bytearray(answered)
    (offered,) = struct.unpack_from("<I", asked, _FLAGS_ASKED)
    (flags,) = struct.unpack_from("<I", answered, _FLAGS_ANSWERED)
    struct.pack_into("<I", message, _FLAGS_ANSWERED, flags | offered & (_PARALLEL_DIROPS | _CACHE_SYMLINKS))
    _LIMITS.pack_into(message, _LIMITS_ANSWERED, _MAX_BACKGROUND, _CONGESTED)
    return bytes(message)


class Session:
    """pyfuse3's session, of which a process has one at a time. A context manager; leaving it unmounts nothing."""

    def __init__(self, operations: pyfuse3.Operations) -> None:
        self._operations = operations
        self._device = -1
        self._other_end = socket.socket()

    def __enter__(self) -> Self:
        """Raises MountFailed if libfuse refuses."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._other_end.close()
        self._other_end, self._device = ours, theirs.detach()
        try:
            pyfuse3.init(self._operations, f"/dev/fd/{self._device}", set())
        except RuntimeError as error:
            os.close(self._device)
            self._other_end.close()
            raise MountFailed(f"libfuse does not start: {error}", hint="It must be libfuse 3.10 or newer") from error
        return self

    def __exit__(self, *_: object) -> None:
        pyfuse3.close(unmount=False)  # closes the device, whatever it is now
        self._other_end.close()

    async def answer(self, asked: bytes) -> bytes:
        """libfuse's reply to FUSE_INIT. To be called once. Raises MountFailed if it refuses. Cancelled: the session is unusable."""
        message = b""
        with trio.socket.from_stdlib_socket(self._other_end) as kernel, trio.move_on_after(_DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                await kernel.send(asked)
                message = await kernel.recv(64 << 10)
                nursery.cancel_scope.cancel()
        if not is_answer(message):
            raise MountFailed(
                f"libfuse does not agree to the FUSE_INIT of this kernel ({os.uname().release}): it answers {message.hex() or 'nothing'}",
                hint="Kernel and libfuse are too far apart: install a newer libfuse 3",
            )
        return message

    def attach(self, connection: int) -> None:
        """Connect libfuse to the kernel through a duplicate of `connection`."""
        os.dup2(connection, self._device, inheritable=False)

    def resend(self) -> bool:
        """Make the kernel resend requests that a dead process left unanswered. False if this kernel cannot (before 6.9)."""
        return resend(self._device)

    async def serve(self) -> None:
        """Answer the kernel until the last user of the file system is gone. Cancelled: requests in progress are left unanswered."""
        await serve(_MAX_TASKS)
