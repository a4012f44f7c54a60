"""Imports that nobody looks through for garbage, in a process of its own: what is frozen stays so."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from lazyfs.cli.importing import importing

with importing():
    assert not gc.isenabled()
    import lazyfs.cli.pull
assert gc.isenabled() and gc.get_freeze_count() > 1000
try:
    with importing():
        import lazyfs.no_such_module
except ModuleNotFoundError:
    assert gc.isenabled()
else:
    raise AssertionError
"""


def test_what_was_imported_is_not_looked_at_again() -> None:
    """And what comes behind it is, whether or not the import failed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
