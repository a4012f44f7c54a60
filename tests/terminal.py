"""A terminal, and a program that has it as its own: what it shows, and what is typed."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Any

PATIENCE_S = 30
_TAKE_IT = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A terminal, and a program that has it as its own."""

    def __init__(self, arguments: list[str], **more: Any) -> None:
        self._master, slave = os.openpty()
        self.resize(33, 99)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_IT, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, **more
        )
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self._master, data)

    def until(self, words: bytes) -> None:
        """Read until `words` have come, once more."""
        end = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            ready = select.select([self._master], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"{words!r} has not come, but {self.seen!r}"
            try:
                self.seen += os.read(self._master, 4096)
            except OSError:
                break
        before, found, self.seen = self.seen.partition(words)
        assert found, f"{words!r} has not come, but {before!r}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def terminal(arguments: list[str], **more: Any) -> Iterator[Terminal]:
    """Run `arguments` on a terminal of its own, of 33 lines and 99 columns; killed at the end."""
    screen = Terminal(arguments, **more)
    try:
        yield screen
    finally:
        screen.close()
