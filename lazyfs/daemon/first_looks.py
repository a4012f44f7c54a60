"""First looks at what has just been mounted (native/first_look.py says why): a process each, that ends with lazyfsd at the latest."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import trio

from lazyfs.native import first_look
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

_DEADLINE: Final = 120.0
"""Seconds; ten million files would take them."""
_AT_ONCE: Final = 1
"""Several would only be in the way of those who wait for something."""


class FirstLooks:
    """Those that are under way."""

    def __init__(self, tasks: Supervisor) -> None:
        self._tasks = tasks
        self._turns = trio.CapacityLimiter(_AT_ONCE)

    def begin(self, names: int) -> None:
        """Look at the tree behind the descriptor `names`, which is closed afterwards."""
        self._tasks.start_soon("first look", self._look, names)

    async def _look(self, names: int) -> None:
        # -I, -S: nothing but Python itself is read, which is half of its start.
        command = [sys.executable, "-I", "-S", "-B", str(Path(first_look.__file__)), str(names)]
        try:
            async with self._turns:
                with trio.move_on_after(_DEADLINE):
                    await trio.run_process(command, pass_fds=[names], stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            _log.warning("cannot warm up the inodes of a mount: %s", error)
        finally:
            os.close(names)
