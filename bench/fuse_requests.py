"""The FUSE requests of one mount, as the kernel counts them: its own trace, not what the daemon says of itself.

Source: Documentation/trace/ftrace.rst (instances, event filters); include/trace/events/fuse.h, since Linux 6.11.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.commands import run

_BUFFER_KB = 8192
"""A processor; 60 bytes an event."""


class FuseRequests:
    """Counts while the block of `counting` lasts."""

    def __init__(self, instance: Path) -> None:
        self._trace = instance / "trace"

    def take(self) -> Counter[str]:
        """How many requests of which kind (LOOKUP, READ…) there were since the last time."""
        found = Counter(re.findall(r"\(FUSE_(\w+)\)", self._trace.read_text()))
        self._trace.write_text("")
        return found


@contextmanager
def counting(mount: Path, folder: Path) -> Iterator[FuseRequests]:
    """Count the requests of the FUSE mount at `mount`. OSError where the kernel cannot: it has no such event."""
    table = Path("/proc/self/mountinfo").read_text()
    found = re.search(rf"^\S+ \S+ 0:(\d+) \S+ {re.escape(str(mount))} .* - fuse", table, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{mount} is not a FUSE mount")
    tracing = folder / "tracing"
    tracing.mkdir(exist_ok=True)
    run("mount", "-t", "tracefs", "tracefs", tracing)
    try:
        instance = tracing / "instances" / f"lazyfs-bench-{os.getpid()}"
        instance.mkdir()
        try:
            (instance / "buffer_size_kb").write_text(str(_BUFFER_KB))
            event = instance / "events" / "fuse" / "fuse_request_send"
            (event / "filter").write_text(f"connection == {found[1]}")
            (event / "enable").write_text("1")
            yield FuseRequests(instance)
            (event / "enable").write_text("0")
        finally:
            instance.rmdir()
    finally:
        run("umount", "--lazy", tracing, code=None)
