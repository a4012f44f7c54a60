"""Where the process of a mount logs: warnings and errors, one line each, with their cause."""

from __future__ import annotations

import logging
import os
from io import TextIOWrapper
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_file(store: Path, directory: Path) -> Path:
    """The log file of the mount at `directory`: one a mount point, so that it can be found without a pid."""
    return store / "logs" / (str(directory).strip("/").replace("/", "-")[-200:] + ".log")


def log_to_file(store: Path, directory: Path) -> None:
    """Log what was mounted, and warnings and errors, to the mount's log file."""
    os.umask(0o077)
    _install(_LateFile(log_file(store, directory), encoding="utf-8", delay=True), logging.WARNING)
    # The line that says what is mounted is written before any chunk and allocates the file's first block: when the disk is full later,
    # there is still room for a message.
    logging.getLogger("lazyfs.portable.mount").setLevel(logging.INFO)


class _LateFile(logging.FileHandler):
    """Creates its folder with the first line: not before the store has been created.

    A line that cannot be written is lost without an error: the caller is often an error handler that must not fail.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # from opening: logging itself catches only errors of writing
            self.handleError(record)

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return super()._open()


def log_to_terminal(level: str = "info") -> None:
    """Log messages of `level` and above to stderr."""
    _install(logging.StreamHandler(), logging.getLevelNamesMapping()[level.upper()])


def _install(handler: logging.Handler, level: int) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    # httpx logs the URL of every request at INFO, and signed URLs are credentials.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
