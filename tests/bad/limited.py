"""A program with limits of memory and processor time, and what it took of both. Whoever exceeds them has failed.

Time on the clock says nothing on a machine that does other work; the kernel counts processor time and memory for each process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

PEAK: Final = 300_000_000
CPU_S: Final = 10
_ADDRESSES: Final = 4 << 30
"""Far more than PEAK: threads reserve addresses that they never use. What goes wild ends here, before the machine does."""


class Cost(NamedTuple):
    """How a program ended, and what it took: itself and the children that it waited for."""

    code: int
    said: str
    peak: int
    """Bytes, of the largest process."""
    cpu: float
    """Seconds."""


def run_limited(*command: str | Path, cpu: int = CPU_S, environment: dict[str, str] | None = None) -> Cost:
    """Run a program to its end. It is killed when it takes more than `cpu` seconds of processor time."""
    launcher = (sys.executable, "-S", "-c", _LAUNCHER, str(cpu), str(_ADDRESSES), *map(str, command))
    done = subprocess.run(launcher, stdin=subprocess.DEVNULL, capture_output=True, check=True, env=environment)
    said, _, last = done.stdout.decode(errors="replace").rstrip().rpartition("\n")
    return Cost(said=said, **json.loads(last))


# A process of its own: the kernel counts for a program also what the process had that became it, and this one may be large.
_LAUNCHER: Final = """
import json, os, resource, sys
cpu, addresses, *command = sys.argv[1:]
pid = os.fork()
if not pid:
    os.dup2(1, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(addresses), int(addresses)))
    os.execvp(command[0], command)
_, status, usage = os.wait4(pid, 0)
cost = {"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024, "cpu": usage.ru_utime + usage.ru_stime}
print("\\n" + json.dumps(cost))
"""


def run_lazyfs(*arguments: str | Path, cpu: int = CPU_S) -> Cost:
    """The same of `lazyfs`."""
    return run_limited(sys.executable, "-m", "lazyfs", *arguments, cpu=cpu)
