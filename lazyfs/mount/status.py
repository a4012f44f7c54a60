"""What a mount says of itself.

The question goes through the mount itself, as an extended attribute of its root: no socket, no pid file, nothing that
could be stale, and whoever sees the mount may ask.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from lazyfs.errors import LazyfsError, MountFailed

_ATTRIBUTE = "user.lazyfs.status"


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
    """Why the background fetch stands still, if it does."""


def encode_status(status: MountStatus) -> bytes:
    """As it travels."""
    return msgspec.json.encode(status)


def ask_status(directory: Path) -> MountStatus:
    """The status of the mount at `directory`. Blocks while the mount's process is busy. Raises MountFailed."""
    try:
        return msgspec.json.decode(os.getxattr(directory, _ATTRIBUTE), type=MountStatus)
    except OSError as error:
        raise MountFailed(
            f"the mount at {directory} does not answer: {error.strerror}",
            hint=f"If its process has died: lazyfs umount {directory}",
        ) from error
    except msgspec.DecodeError as error:
        raise LazyfsError(f"the mount at {directory} answers in another version's words: {error}") from error
