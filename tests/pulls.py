"""Pulls of one image into one containerd, one after the other, cut off or not: each is to leave nothing behind."""

from __future__ import annotations

import math
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.containerd import Containerd
from tests.lazyfsd import moments
from tests.lying_registry import LyingRegistry
from tests.plugin import NAME, Plugin
from tests.tool_image import HELLO


class Pulls:
    """Of one image."""

    def __init__(self, containerd: Containerd, plugin: Plugin, registry: LyingRegistry) -> None:
        self.containerd, self.plugin = containerd, plugin
        self._reference = f"{registry.image}:v1"
        self._lasts = math.inf
        """Seconds that one takes, where nothing is in its way, and what is asked of a registry once is here already."""
        self.check()
        self.check()
        self._opened = plugin.descriptors()

    def check(self) -> None:
        """A pull and a run work; what they leave goes with the image."""
        began = time.monotonic()
        name = self.containerd.pull_lazily(self._reference, NAME)
        self._lasts = min(self._lasts, time.monotonic() - began)
        assert self.containerd.output(name, *HELLO, snapshotter=NAME) == "hello\n"
        self.containerd.prune()
        self.plugin.await_empty()

    def check_descriptors(self, kills: int) -> None:
        """lazyfsd has the same files open as before, but for what it has at work just now, and has not gained a connection by each kill."""
        for _ in moments():
            more = self.plugin.descriptors() - self._opened
            if not any(name.startswith("/") for name in more) and more.total() < kills:
                return
        raise AssertionError(f"lazyfsd has more open than before: {more}")

    @contextmanager
    def under_way(self, chance: random.Random) -> Iterator[subprocess.Popen[bytes]]:
        """A pull that asks for snapshots just now, or soon will, or is at its end; what is left of it is killed with the block."""
        with self.containerd.start_pull(self._reference, NAME) as pull:
            try:
                time.sleep(chance.uniform(self._lasts / 4, self._lasts))
                yield pull
            finally:
                pull.kill()
