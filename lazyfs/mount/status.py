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

_ATTRIBUTE = "user.lazyfs.status"
_STATUS_DEADLINE = 30.0
_PROCESS_ATTRIBUTE = "user.lazyfs.process"


class LayerStatus(msgspec.Struct, frozen=True):
    """One layer of a mount."""

    digest: str
    size: int
    """Of the blob."""
    reason: str
    """Why it is not lazy; empty for one that is."""


class MountStatus(msgspec.Struct, frozen=True):
    """The state of one mount; sizes in bytes."""

    directory: str
    image: str
    pid: int
    store: str
    background: str
    complete: bool
    """Everything is here: neither registry nor network is needed any more."""
    missing_chunks: int
    missing_bytes: int
    """Uncompressed."""
    total_bytes: int
    layers: int
    layer_bytes: int
    """What a full pull moves: the layers' compressed sizes."""
    requests: int
    received_bytes: int
    """Compressed bytes of chunks that this process has fetched."""
    chunks: int
    unkept: int
    damaged: int
    errors: dict[str, int]
    trouble: str
    """Why the background fetch stands still, if it does, or why the mount does not work."""
    mode: str = "portable"
    upper: str = ""
    """The writable directory of a native mount that has one."""
    layer_states: tuple[LayerStatus, ...] = ()
    """Of each layer, the lowest first."""
    published: int = 0
    """Native, here and below: of all mounts of this lazyfsd since it began. Misses that it answered by putting the file in its place."""
    entries: int = 0
    """Misses that it answered with an entry of the gate: those files are read through FUSE for a while."""
    reads: int = 0
    """Reads through FUSE."""
    kept: int = 0
    """Chunks that it has put into the store."""
    failures: dict[str, int] = {}
    """Tasks of its process that have failed, by what they do (lazyfs/tasks.py)."""


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
        raise LazyfsError(f"the mount at {directory} answers in another version's words: {error}") from error


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
