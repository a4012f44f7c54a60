"""What the workers of one test run share: a folder, what is made once in it, and the order in which they take test files.

`.ci/test` runs pytest with one worker more than there are cores, because the tests of mounts and containers wait more than they compute.
A file's tests stay in one worker. Without workers, as in `pytest tests/unit/format`, one process does everything, in the order of the tiers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

_KEY = "lazyfs_run_folder"


class Workers:
    """The hooks of pytest and of xdist by which the workers of a run share `folder`, which is removed at the end of the run."""

    def __init__(self, config: pytest.Config) -> None:
        given: dict[str, Any] = getattr(config, "workerinput", {})
        self._worker = bool(given)
        self._tiers = [str(config.rootpath / path) for path in config.getini("testpaths")]
        # On a disk, because what tests leave in it is large, and under a short path, because sockets lie in it.
        self.folder = Path(given[_KEY] if given else tempfile.mkdtemp(prefix="lazyfs-tests-", dir="/var/tmp"))
        self._root = config.rootpath

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker is about to start: hand it the folder."""
        node.workerinput[_KEY] = str(self.folder)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give workers the long files first, so that at the end thousands of short tests keep every worker busy."""
        if self._worker:
            items.sort(key=lambda item: -self._tier(item.nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test that is marked `alone` while no other worker runs one."""
        if not self._worker:
            return (yield)
        with ExitStack() as stack:
            # Held until the room is entered: a test that waits for the others to leave lets no further one in.
            with _locked(self.folder / "door.lock", fcntl.LOCK_EX):
                alone = item.get_closest_marker("alone") is not None
                stack.enter_context(_locked(self.folder / "room.lock", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
            return (yield)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Several workers report as they finish: list what failed in the order of the tiers, the lowest first."""
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and not self._worker:
            for outcome in ("failed", "error"):
                reporter.stats.get(outcome, []).sort(
                    key=lambda report: (self._tier(report.nodeid), report.nodeid.partition("::")[0])
                )

    def pytest_unconfigure(self) -> None:
        """All workers have ended."""
        if not self._worker:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _tier(self, nodeid: str) -> int:
        path = str(self._root / nodeid.partition("::")[0])
        return next((number for number, tier in enumerate(self._tiers) if path == tier or path.startswith(f"{tier}/")), -1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many workers `--numprocesses auto` starts."""
    return len(os.sched_getaffinity(0)) + 1


@contextmanager
def own_folder(shared: Path) -> Iterator[Path]:
    """A folder in the shared one for this worker alone, removed at its end."""
    folder = shared / os.environ.get("PYTEST_XDIST_WORKER", "own")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def once(shared: Path, name: str, make: Callable[[], object]) -> None:
    """Have `make` called by one worker of the run; the others wait for it. One that failed leaves it to the next."""
    with _locked(shared / f"{name}.lock", fcntl.LOCK_EX):
        done = shared / f"{name}.done"
        if not done.exists():
            make()
            done.touch()


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, how)
        yield
