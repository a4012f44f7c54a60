"""Runs the inode warm-up of new mounts, a process each (native/warm_inodes.py says why). No such process outlives lazyfsd."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import trio

from lazyfs.native import warm_inodes
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_DEADLINE: Final = 120.0
"""Seconds; ten million files would take them."""
_AT_ONCE: Final = 1
"""Several would compete with programs that wait for files."""


class InodeWarmUp:
    """The warm-ups that wait or run. One that fails is logged, and its mount works without it."""

    def __init__(self, tasks: Supervisor) -> None:
        self._tasks = tasks
        self._limiter = trio.CapacityLimiter(_AT_ONCE)

    def begin(self, names: int, directory: str) -> None:
        """Start to warm up the tree behind the descriptor `names`, which is closed at the end; `directory` is the mount, for the log."""
        self._tasks.start_soon("inode warm-up", self._warm, names, directory, subject=directory)

    async def _warm(self, names: int, directory: str) -> None:
        # -I, -S: no site-packages. That halves the time that Python takes to start.
        command = [sys.executable, "-I", "-S", "-B", str(Path(warm_inodes.__file__)), str(names)]
        try:
            async with self._limiter:
                with trio.move_on_after(_DEADLINE):
                    await trio.run_process(command, pass_fds=[names], stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            _log.warning("cannot warm up the inodes of the mount at %s: %s", directory, error)
        finally:
            os.close(names)
