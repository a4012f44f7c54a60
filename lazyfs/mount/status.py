"""The status of a mount, read from the mount itself.

It is an extended attribute of the mount's root: no socket and no pid file that could be stale, and every process that sees the mount can read it.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from lazyfs.errors import LazyfsError, MountFailed
from lazyfs.reports.status import MountStatus

_ATTRIBUTE = "user.lazyfs.status"
_STATUS_DEADLINE = 30.0
_PROCESS_ATTRIBUTE = "user.lazyfs.process"


def encode_status(status: MountStatus) -> bytes:
    """The value of the attribute."""
    return msgspec.json.encode(status)


def ask_status(directory: Path) -> MountStatus:
    """The status of the mount at `directory`. Raises MountFailed if the mount is dead or does not answer within half a minute."""
    try:
        return msgspec.json.decode(_ask(directory, _ATTRIBUTE, _STATUS_DEADLINE), type=MountStatus)
    except OSError as error:
        raise MountFailed(
            f"the mount at {directory} does not answer: {error.strerror}",
            hint=f"If its process has died: lazyfs umount {directory} (--lazy if it hangs)",
        ) from error
    except msgspec.DecodeError as error:
        raise LazyfsError(f"the mount at {directory} answers in the format of another version: {error}") from error


def ask_process(directory: Path, timeout: float) -> int | None:
    """The pid of the process that serves the mount at `directory`; None if it is dead, does not answer within `timeout` seconds, or
    this user may not ask."""
    with suppress(OSError, ValueError):
        return int(_ask(directory, _PROCESS_ATTRIBUTE, timeout))
    return None


def _ask(directory: Path, attribute: str, timeout: float) -> bytes:
    """Raises OSError; ETIMEDOUT after `timeout` seconds."""
    answer: list[bytes | OSError] = []

    def ask() -> None:
        try:
            answer.append(os.getxattr(directory, attribute))
        except OSError as error:
            answer.append(error)

    # In a thread that may be left behind: nothing else interrupts a wait for a hung mount.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if not answer:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]
