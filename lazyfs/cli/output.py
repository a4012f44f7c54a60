"""Standard output as it may be: a pipe whose reader has gone, a full disk; and how sizes are written there."""

from __future__ import annotations

import os
import sys

from lazyfs.errors import LocalError


def put(text: str | bytes) -> None:
    """Write to standard output at once, names of any bytes included.

    Raises LocalError where it cannot be written to, BrokenPipeError where nobody reads it any more.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LocalError(f"cannot write to standard output: {error.strerror}") from error


def discard_unwritten() -> None:
    """Drop what could not be written: at its end Python would try once more, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def megabytes(size: int) -> str:
    """Bytes, for a reader."""
    return f"{size / 1e6:.1f} MB"
