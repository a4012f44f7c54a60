"""Writing to standard output, which may be a pipe without a reader or a full disk; and the format of sizes."""

from __future__ import annotations

import os
import sys

from lazyfs.errors import LocalError


def put(text: str | bytes) -> None:
    """Write to standard output and flush; names may have any bytes.

    Raises LocalError if writing fails, BrokenPipeError if the reader has gone.
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
    """Drop what could not be written: at exit, Python would try again and print an error."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def megabytes(size: int) -> str:
    """A size in bytes, as text."""
    return f"{size / 1e6:.1f} MB"
