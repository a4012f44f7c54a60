"""The memory of processes, as the kernel counts it."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

from tests.processes import tree

MIB = 1 << 20
_POLL_S = 0.01


def resident(pid: int, field: str = "VmRSS") -> int:
    """Bytes; `VmHWM` is the most there ever were. 0 for a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def peak(*command: str | Path, environment: dict[str, str], timeout: float = 1800) -> int:
    """Run a program; the sum of the peaks of all its processes, whether or not they came at the same time, in bytes."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            for pid in tree(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), resident(pid, "VmHWM"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = process.wait(timeout)
    finally:
        ended.set()
        watcher.join()
        process.kill()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return sum(peaks.values())
