"""The memory and the processor time of processes, as the kernel counts them."""

from __future__ import annotations

import os
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


def processor_time(pid: int) -> float:
    """Seconds, of all its threads, in user mode and in the kernel; to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
