"""What a command imports, and that the garbage collector skips it; in processes of their own."""

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


REPORTS = """
import sys
import lazyfs.reports.orders, lazyfs.reports.results, lazyfs.reports.status, lazyfs.reports.steps, lazyfs.reports.wire
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("lazyfs.")}
assert rooms == {"errors", "reports"}, rooms
import lazyfs.daemon.client, lazyfs.cli.run
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("lazyfs.")}
assert not rooms & {"fetch", "live", "gate", "fuse", "containerd", "pull", "eager"}, rooms
assert not {"trio", "grpc", "httpx", "sqlite3", "rich", "pyfuse3"} & set(sys.modules), sorted(sys.modules)
"""


def test_a_client_imports_no_daemon() -> None:
    """Reports, the client, and `lazyfs run`, start without an event loop, and without what lazyfsd works with."""
    done = subprocess.run([sys.executable, "-c", REPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
