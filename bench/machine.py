"""What the figures depend on and do not say."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("deflate", "h11", "httpx", "isal", "lazyfs", "msgspec", "pyfuse3", "trio", "xxhash", "zstandard")
PACKAGES = ("containerd", "docker-registry", "fuse3", "stargz-snapshotter")
QUIET = 0.5
"""A load average below this is nobody else's."""


def facts() -> dict[str, Any]:
    """The first line of a record."""
    return {
        "kind": "machine",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": load(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "packages": packages(),
    }


def load() -> float:
    """How many processes wanted a core over the last minute."""
    return os.getloadavg()[0]


def commit() -> str:
    """The checkout's commit, `+` behind it where files differ from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parent.parent
        command = ["git", "-c", f"safe.directory={root}", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def cpu() -> str:
    """The processor, as it calls itself."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def packages() -> dict[str, str]:
    """Versions of the Debian packages that are measured, or measured against."""
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)
