"""What all tests share: trio for `async def` tests, checks of the log, skips for what a machine lacks, real images.

These hooks replace pytest-trio, which has had no release since 2022 and lacks what is needed here.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import trio
import trio.testing

from tests.commands import Lazyfs, umoci_unpack
from tests.docker_registry import Registry
from tests.images.build import Builder
from tests.tree import Record, walk
from tests.workers import Workers, once, own_folder, pytest_xdist_auto_num_workers

__all__ = ["pytest_xdist_auto_num_workers"]

# A background job of a shell without job control ignores SIGINT, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the time for an example depends on the load of the machine.
hypothesis.settings.register_profile("lazyfs", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lazyfs")

_LONGEST_ID = 16
"""Longest bytes parameter in a test's name."""


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of a run share what is made only once."""
    config.pluginmanager.register(Workers(config), Workers.__name__)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Do not name a test by a long run of bytes: it is unreadable, and the time in a gzip header differs from worker to worker."""
    return argname if isinstance(val, bytes) and len(val) > _LONGEST_ID else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests under trio; with the fixture `autojump_clock` under its clock."""
    if not inspect.iscoroutinefunction(inspect.unwrap(pyfuncitem.obj)):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    clock = pyfuncitem.funcargs.get("autojump_clock")
    assert clock is None or isinstance(clock, trio.abc.Clock)
    trio.run(functools.partial(pyfuncitem.obj, **arguments), clock=clock)
    return True


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Virtual time: whenever all tasks wait, the clock jumps to the next deadline."""
    return trio.testing.MockClock(autojump_threshold=0)


class LogWatch(logging.Handler):
    """Collects what is logged at WARNING and above; an unexpected line fails the test, and so does an expected one that is missing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: list[str] = []
        self._expected: list[re.Pattern[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._seen.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def __call__(self, pattern: str) -> None:
        """Expect at least one line that matches `pattern`."""
        self._expected.append(re.compile(pattern))

    def check(self) -> None:
        """Raise AssertionError unless the log is as expected."""
        surprising = [line for line in self._seen if not any(pattern.search(line) for pattern in self._expected)]
        assert not surprising, "logged without `expect_log`:\n" + "\n".join(surprising)
        missing = [pattern.pattern for pattern in self._expected if not any(pattern.search(line) for line in self._seen)]
        assert not missing, f"expected in the log, and not there: {missing}"


@pytest.fixture(autouse=True)
def expect_log() -> Iterator[LogWatch]:
    """Call it with a regular expression for a warning or error that this test expects."""
    watch = LogWatch()
    logging.getLogger().addHandler(watch)
    yield watch
    logging.getLogger().removeHandler(watch)
    watch.check()


def lacks(*programs: str) -> str:
    """The reason to skip if one of these programs is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (.ci/setup test does it)" if missing else ""


def lacks_root() -> str:
    return "" if os.geteuid() == 0 else "needs root"


def lacks_namespaces() -> str:
    tried = subprocess.run(["unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "true"], check=False)
    return "namespaces cannot be made here" if tried.returncode else ""


LACKS: dict[str, Callable[[], str]] = {
    "root": lacks_root,
    "fuse": lambda: lacks("fusermount3") or ("" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse cannot be opened"),
    "registry": lambda: lacks("docker-registry", "skopeo"),
    "images": lambda: lacks_root() or lacks("debootstrap"),
    "erofs": lambda: lacks_root() or lacks("fsck.erofs"),
    "umoci": lambda: lacks_root() or lacks("umoci"),
    "containerd": lambda: lacks_root() or lacks("containerd", "ctr", "runc"),
    "systemd": lambda: lacks_root() or lacks("/lib/systemd/systemd", "nsenter", "unshare") or lacks_namespaces(),
    "peer": lambda: lacks("ctr-remote", "/usr/bin/go"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that this machine cannot run, with the reason. CI runs everything, as root: there they fail."""
    for reason in (lack() for name, lack in LACKS.items() if item.get_closest_marker(name)):
        if reason and os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(f"CI has to run this test: {reason}", pytrace=False)
        elif reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def run_folder(pytestconfig: pytest.Config) -> Path:
    """A folder shared by all workers, on a disk and removed after the run, for what is made only once."""
    workers = pytestconfig.pluginmanager.get_plugin(Workers.__name__)
    assert isinstance(workers, Workers)
    return workers.folder


@pytest.fixture(scope="session")
def session_folder(run_folder: Path) -> Iterator[Path]:
    """This worker's folder for large files: on a disk and removed after the session, unlike pytest's own."""
    with own_folder(run_folder) as folder:
        yield folder


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry of the test's own, empty."""
    with Registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="session")
def shared_registry(session_folder: Path, run_folder: Path) -> Iterator[Registry]:
    """One registry per worker, over storage that all workers share: what tests push stays, under their own names."""
    with Registry(session_folder / "registry", storage=run_folder / "storage") as running:
        yield running


@pytest.fixture(scope="session")
def images() -> Callable[[str], str]:
    """The builder: `images("python")` is how `oci:` notation names that image."""
    return functools.cache(Builder().build)


@pytest.fixture(scope="session")
def originals(shared_registry: Registry, images: Callable[[str], str], run_folder: Path) -> Callable[[str], str]:
    """`originals("python")` is that image, as built, in the session's registry."""

    def original(name: str) -> str:
        once(run_folder, f"original-{name}", lambda: shared_registry.push(images(name), f"original/{name}:v1"))
        return f"docker://{shared_registry.address}/original/{name}:v1"

    return functools.cache(original)


@pytest.fixture(scope="session")
def converted_layout(images: Callable[[str], str], session_folder: Path, run_folder: Path) -> Callable[[str], str]:
    """`converted_layout("python")` is that image, converted at default options, in a layout that is not to be changed."""

    def convert(name: str) -> str:
        layout = f"oci:{run_folder}/converted-{name}:v1"
        command = Lazyfs(session_folder / "convert")
        once(run_folder, f"convert-{name}", lambda: command.run("convert", images(name), layout, timeout=600))
        return layout

    return functools.cache(convert)


@pytest.fixture(scope="session")
def converted(shared_registry: Registry, converted_layout: Callable[[str], str], run_folder: Path) -> Callable[[str], str]:
    """`converted("python")` is the same image in the session's registry."""

    def push(name: str) -> str:
        once(run_folder, f"converted-{name}", lambda: shared_registry.push(converted_layout(name), f"converted/{name}:v1"))
        return f"docker://{shared_registry.address}/converted/{name}:v1"

    return functools.cache(push)


@pytest.fixture(scope="session")
def unpacked(images: Callable[[str], str], run_folder: Path) -> Callable[[str], dict[bytes, Record]]:
    """`unpacked("python")` is the tree that umoci makes of the original."""

    def tree(name: str) -> dict[bytes, Record]:
        target = run_folder / f"unpacked-{name}"
        once(run_folder, target.name, lambda: umoci_unpack(images(name), target))
        return walk(target / "rootfs")

    return functools.cache(tree)


@pytest.fixture
def lazyfs(tmp_path: Path) -> Iterator[Lazyfs]:
    """The command line, with a store and a home of the test's own; what it mounted is unmounted."""
    command = Lazyfs(tmp_path / "lazyfs")
    yield command
    command.close()
