"""How much disk space all chunks take, without counting them each time.

A count walks the index, takes 15 ms for 100,000 chunks, and blocks lookups meanwhile. Status and the store's limit ask for it
every second or more often. So the count is kept. What this process adds is added to it; after a removal by this process it is
counted again on demand. Changes by other processes are found by counting again, at most once a second and for at most one
fiftieth of the time. A chunk that is kept twice, or during a count, may be counted twice until the next count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_PAUSE: Final = 1.0
_SHARE: Final = 50


class DiskUsage:
    """The cached count. Any thread may call it."""

    def __init__(self, count: Callable[[], int], version: Callable[[], object]) -> None:
        """`count()` counts. `version()` returns a new value after every change of what is counted."""
        self._count = count
        self._version_of = version
        self._measuring = threading.Lock()
        self._lock = threading.Lock()
        self._counted: int | None = None
        self._added = 0
        self._version: object = None
        self._pause_until = 0.0

    def add(self, size: int) -> None:
        """This many bytes were added."""
        with self._lock:
            self._added += size

    def forget(self) -> None:
        """Something was removed: count again on demand."""
        self._counted = None

    def measure(self) -> int:
        """Disk space in bytes. Blocking."""
        with self._measuring:
            version, began = self._version_of(), time.monotonic()
            counted = self._counted
            if counted is None or (version != self._version and began >= self._pause_until):
                with self._lock:
                    self._added = 0
                self._counted = 0  # so that a removal during the count is noticed
                counted = self._count()
                if self._counted is not None:
                    self._counted = counted
                self._version = version
                self._pause_until = began + max(_PAUSE, _SHARE * (time.monotonic() - began))
            return counted + self._added
