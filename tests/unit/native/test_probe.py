"""The trial mount: what it says of this machine, and of machines that lack something."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.kernel.mounting import Context
from lazyfs.native import layers, probe
from lazyfs.native.probe import ProbeResult
from lazyfs.store.directory import Directory


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, kind: str, option: str = "") -> None:
    """Make the kernel refuse to open the file system `kind`, or to take one of its options."""
    real_set, real_init = Context.set, Context.__init__

    def init(self: Context, opened: str) -> None:
        if opened == kind and not option:
            raise OSError(number, os.strerror(number), f"fsopen({kind})")
        real_init(self, opened)

    def set_option(self: Context, name: str, value: str | bytes | None = None) -> None:
        if self._kind == kind and name == option:
            raise OSError(number, os.strerror(number), f"{kind} {option}")
        real_set(self, name, value)

    monkeypatch.setattr(Context, "__init__", init)
    monkeypatch.setattr(Context, "set", set_option)


def reason_of(store: Path) -> str:
    """Why not; having left nothing."""
    verdict = probe.probe(store)
    assert not verdict.native
    assert not verdict.file_backed
    assert not list(store.iterdir())
    return verdict.reason


@pytest.mark.root
def test_this_machine_can(tmp_path: Path) -> None:
    """The machines that test this can mount natively, in memory through loop devices; nothing is left of the trial."""
    assert probe.probe(tmp_path).native
    assert not list(tmp_path.iterdir())
    with memory() as folder:
        assert probe.probe(folder) == ProbeResult(native=True, file_backed=False, reason="")


@contextmanager
def memory() -> Iterator[Path]:
    """A folder on a tmpfs."""
    folder = Path("/dev/shm") / f"lazyfs-probe-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.root
@pytest.mark.parametrize(
    ("number", "kind", "option", "words"),
    [
        (errno.ENOSYS, "erofs", "", "this kernel has no fsopen"),
        (errno.ENODEV, "erofs", "", "this kernel has no EROFS"),
        (errno.ENODEV, "overlay", "", "this kernel has no overlayfs"),
        (errno.EINVAL, "overlay", "datadir+", "overlayfs takes no data-only layers"),
        (errno.EINVAL, "overlay", "metacopy", "a trial mount in .* failed: Invalid argument .overlay metacopy"),
        (errno.EPERM, "erofs", "", "may not mount"),
        (errno.EPERM, "erofs", "source", "may not mount"),
    ],
)
def test_what_a_kernel_may_lack(
    number: int, kind: str, option: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal has its reason, in words, and is not an error."""
    refuse(monkeypatch, number, kind, option)
    assert re.search(words, reason_of(tmp_path))


@pytest.mark.root
def test_neither_file_nor_loop_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If images can be mounted in neither way, both errors are reported."""

    @contextmanager
    def no_loop(*_: object) -> Iterator[str]:
        raise FileNotFoundError(errno.ENOENT, "there is none", "/dev/loop-control")
        yield

    monkeypatch.setattr(layers, "loop_device", no_loop)
    with memory() as folder:
        reason = reason_of(folder)
    assert "neither directly: Block device required" in reason
    assert "nor through a loop device: there is none (/dev/loop-control)" in reason


@pytest.mark.root
def test_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store on a file system whose files have one name cannot have the twin that a miss is answered with."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert "cannot have two names (hard links)" in reason_of(tmp_path)


@pytest.mark.root
def test_a_mount_that_shows_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the mount succeeds is not enough: the file in it must hold what it should."""
    monkeypatch.setattr(probe, "mount_stack", lambda at, *_, **__: (at / "file").write_bytes(b"something else"))
    assert "did not show its content" in reason_of(tmp_path)


def test_an_ordinary_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert reason_of(tmp_path) == "only root can mount natively"


def test_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be written to is a reason as well."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    verdict = probe.probe(tmp_path / "missing")
    assert not verdict.native
    assert "No such file or directory" in verdict.reason


@pytest.mark.root
def test_without_the_right_to_mount(tmp_path: Path) -> None:
    """Root in an unprivileged container gets a clear reason."""
    program = f"from pathlib import Path; from lazyfs.native.probe import probe; print(probe(Path({str(tmp_path)!r})).reason)"
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    for before in (drop, ["unshare", "--user", "--map-root-user"]):
        done = subprocess.run([*before, sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "this process may not mount" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_killed_in_a_trial(tmp_path: Path) -> None:
    """No mount and no loop device outlives a killed trial; a later trial removes its folder once it is old enough."""
    program = f"""
import os, signal
from pathlib import Path
from lazyfs.native import probe
probe.mount_stack = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
probe.probe(Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert str(left) not in Path("/proc/self/mountinfo").read_text()
    assert probe.probe(tmp_path).native
    assert left.exists(), "it might be somebody's who is slow"
    os.utime(left, (time.time() - 100,) * 2)
    assert probe.probe(tmp_path).native
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_trials_are_in_nobodys_way(tmp_path: Path) -> None:
    """Several first mounts at once: each has its verdict, and each makes the store, whichever is at what."""
    stop = threading.Event()

    def try_often() -> list[ProbeResult]:
        return [probe.probe(tmp_path) for _ in range(40)]

    def open_often() -> None:
        while not stop.is_set():
            Directory(tmp_path).close()
            for path in tmp_path.iterdir():
                if not path.name.startswith("."):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_often)
        try:
            verdicts = [verdict for trial in [pool.submit(try_often) for _ in range(3)] for verdict in trial.result()]
        finally:
            stop.set()
        opening.result()
    assert all(verdict.native for verdict in verdicts), verdicts
