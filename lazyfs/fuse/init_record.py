"""The record of a connection's FUSE_INIT, for processes that take the connection over.

The kernel sends FUSE_INIT once per connection. A process that inherits one gives libfuse the recorded request, and must get the reply
that the kernel got: the size of requests and the meaning of flags depend on it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

_FORMAT: Final = 1
_MOST: Final = 64 << 10
"""Bytes. A record has about 600."""


class InitRecord(msgspec.Struct, frozen=True):
    """FUSE_INIT of one connection and libfuse's reply, headers included. Source: fuse(4), struct fuse_init_in and _out."""

    boot: str
    connection: int
    """Its number under /sys/fs/fuse/connections: unique among live connections until the next boot."""
    asked: bytes
    answered: bytes
    """As libfuse wrote it; the kernel gets it patched (session.py)."""
    format: int = _FORMAT


def save_record(path: Path, record: InitRecord) -> None:
    """Replace the record, durably. Blocking. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(record))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_record(path: Path, connection: int | None) -> InitRecord | None:
    """The record of this connection (None: whatever its number); None if there is none or it is damaged. Blocking."""
    try:
        with open(path, "rb") as file:
            record = msgspec.json.decode(file.read(_MOST), type=InitRecord)
    except (OSError, msgspec.DecodeError):
        return None
    is_current = record.format == _FORMAT and record.boot == boot_id() and connection in {None, record.connection}
    return record if is_current else None


def boot_id() -> str:
    """The boot id of the running kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
