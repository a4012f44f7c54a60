"""What callers are about to do, from the real system calls of a real process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.gate.caller import Callers
from tests.lazyfsd import moments

pytestmark = pytest.mark.root


def caught_in(call: Callable[[str], object], tmp_path: Path) -> bool:
    """Whether any system call of a child that does `call` counts as one that only changes metadata.

    ptrace stops the child at each entry.
    """
    callers = Callers()
    libc = ctypes.CDLL(None, use_errno=True)
    traceme, syscall, kill = 0, 24, 8
    (tmp_path / "file").touch()
    child = os.fork()
    if child == 0:
        try:
            libc.ptrace(traceme, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            call(str(tmp_path / "file"))
        finally:
            os._exit(0)
    verdicts = []
    try:
        os.waitpid(child, 0)
        while True:
            libc.ptrace(syscall, child, None, None)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                child = 0
                break
            verdicts.append(callers.changes_metadata_only(child))
    finally:
        callers.__exit__()
        if child:
            libc.ptrace(kill, child, None, None)
            os.waitpid(child, 0)
    return any(verdicts)


@pytest.mark.parametrize(
    "call",
    [
        lambda path: os.chown(path, 1, 1),
        lambda path: os.lchown(path, 1, 1),
        lambda path: os.chmod(path, 0o600),
        os.utime,
        lambda path: os.link(path, path + "2"),
        lambda path: os.rename(path, path + "3"),
        lambda path: os.setxattr(path, "trusted.x", b""),
        os.unlink,
    ],
)
def test_calls_that_read_nothing(call: Callable[[str], object], tmp_path: Path) -> None:
    """Each is recognised by its number."""
    assert caught_in(call, tmp_path)


@pytest.mark.parametrize(
    "call",
    [lambda path: Path(path).read_bytes(), lambda path: Path(path).write_bytes(b"x"), lambda path: os.truncate(path, 0), os.stat],
)
def test_calls_that_may_read(call: Callable[[str], object], tmp_path: Path) -> None:
    """Opening, writing and truncating may need the file's bytes."""
    assert not caught_in(call, tmp_path)


def test_an_unreadable_caller_is_assumed_to_read() -> None:
    """No such thread, or the kernel itself."""
    with Callers() as callers:
        assert not callers.changes_metadata_only(0)
        assert not callers.changes_metadata_only(2**22 + 1)
        assert not callers.changes_metadata_only(2)


def test_the_call_of_a_running_thread_is_unknown() -> None:
    """It is in no system call, or in one that the kernel does not show until it sleeps."""
    with Callers() as callers, subprocess.Popen(["sh", "-c", "while :; do :; done"]) as spinning:
        try:
            assert any(callers.changes_metadata_only(spinning.pid) is None for _ in moments())
        finally:
            spinning.kill()


def test_files_of_many_callers_are_kept_and_closed() -> None:
    """Some stay open for any caller. The file of an ended thread is closed when it is used, and all files at the end of the
    block."""
    before = len(os.listdir("/proc/self/fd"))
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(70)]
    for thread in threads:
        thread.start()
    with Callers() as callers:
        for _ in range(2):
            assert not any(callers.changes_metadata_only(thread.native_id or 0) for thread in threads)
            assert len(os.listdir("/proc/self/fd")) == before + 64
        end.set()
        for thread in threads:
            thread.join()
            while Path(f"/proc/self/task/{thread.native_id}").exists():
                """joined a moment before the kernel has done with it"""
        assert not any(callers.changes_metadata_only(thread.native_id or 0) for thread in threads)
        assert len(os.listdir("/proc/self/fd")) == before
        assert not callers.changes_metadata_only(threading.get_native_id())
    assert len(os.listdir("/proc/self/fd")) == before
