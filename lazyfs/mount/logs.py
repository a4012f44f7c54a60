"""Where a mount's process writes what went wrong: warnings and errors, one line each, with their cause."""

from __future__ import annotations

import logging
import os
from io import TextIOWrapper
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_file(store: Path, directory: Path) -> Path:
    """The log of the mount at `directory`: one file a mount point, so that nobody has to know a pid."""
    return store / "logs" / (str(directory).strip("/").replace("/", "-")[-200:] + ".log")


def log_to_file(store: Path, directory: Path) -> None:
    """What was mounted, and warnings and above, into the mount's file."""
    os.umask(0o077)
    _install(_LateFile(log_file(store, directory), encoding="utf-8", delay=True), logging.WARNING)
    # The line that says what is mounted comes before any chunk, and brings the file its first block: when the disk is
    # full, there is still room to say so.
    logging.getLogger("lazyfs.portable.mount").setLevel(logging.INFO)


class _LateFile(logging.FileHandler):
    """Makes its folder with its first line: not before the store's directory has become one.

    A line that cannot be written is lost, and nothing else: whoever complains is often the mount's last guard.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening: logging itself catches only what writing raises
            self.handleError(record)

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return super()._open()


def log_to_terminal(level: str = "info") -> None:
    """Everything from `level` on, to stderr."""
    _install(logging.StreamHandler(), logging.getLevelNamesMapping()[level.upper()])


def _install(handler: logging.Handler, level: int) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    # httpx tells every request at INFO, with its URL: signed ones are credentials.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
