"""What a mount says of itself.

The question goes through the mount itself, as an extended attribute of its root: no socket, no pid file, nothing that
could be stale, and whoever sees the mount may ask.
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
    """As it travels."""
    return msgspec.json.encode(status)


def ask_status(directory: Path) -> MountStatus:
    """The status of the mount at `directory`. Raises MountFailed: it is dead, or says nothing for half a minute."""
    try:
        return msgspec.json.decode(_ask(directory, _ATTRIBUTE, _STATUS_DEADLINE), type=MountStatus)
    except OSError as error:
        raise MountFailed(
            f"the mount at {directory} does not answer: {error.strerror}",
            hint=f"If its process has died: lazyfs umount {directory} (--lazy if it hangs)",
        ) from error
    except msgspec.DecodeError as error:
        raise LazyfsError(f"the mount at {directory} answers in the format of another version: {error}") from error


def ask_process(directory: Path, patience: float) -> int | None:
    """The number of the process that serves the mount at `directory`; None where it is dead, says nothing within `patience`
    seconds, or must not be asked by this user."""
    with suppress(OSError, ValueError):
        return int(_ask(directory, _PROCESS_ATTRIBUTE, patience))
    return None


def _ask(directory: Path, attribute: str, patience: float) -> bytes:
    """Raises OSError; ETIMEDOUT when there is no answer within `patience` seconds."""
    answer: list[bytes | OSError] = []

    def ask() -> None:
        try:
            answer.append(os.getxattr(directory, attribute))
        except OSError as error:
            answer.append(error)

    # In a thread that may be left behind: nothing else ends the wait for a mount that hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    if not answer:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]
