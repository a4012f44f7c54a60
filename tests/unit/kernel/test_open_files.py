"""The limit of open files."""

from __future__ import annotations

import subprocess
import sys

_BODY = """
import resource
from lazyfs.kernel.open_files import require_open_files
require_open_files("it", 256)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def after(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    """A process with these limits, which asks for 256."""
    return subprocess.run(
        ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", _BODY], capture_output=True, text=True, check=False
    )


def test_soft_limit_is_raised() -> None:
    """As far as it is needed, and the hard one allows; never lowered."""
    assert after(64, 1024).stdout == "(256, 1024)\n"
    assert after(1000, 1024).stdout == "(1000, 1024)\n"


def test_hard_limit_is_an_error() -> None:
    """Who it is about, the limit, what is needed, and what to do."""
    output = after(64, 255).stderr
    assert (
        "LocalError: it may have no more than 255 files open at a time, and needs 256. Raise the limit: `ulimit -n 512`" in output
    )
