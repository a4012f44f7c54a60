"""The lazyfsd of a store, for tests: finding, killing and stopping it, and its connection to the kernel.

A test process never accesses a mount that may not be served: the processes of readers.py do.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from lazyfs.daemon.client import Client
from lazyfs.kernel.mountinfo import mounted_at, mounts
from lazyfs.reports.orders import StatusOrder
from tests.commands import run

PATIENCE_S: Final = 60.0
_POLL_MS: Final = 10


def pause() -> None:
    """Sleep for a moment, between two checks."""
    select.poll().poll(_POLL_MS)


def moments() -> Iterator[None]:
    """Moments for repeated checks of a condition. If they run out, the condition was never met."""
    for _ in range(int(PATIENCE_S * 1000) // _POLL_MS):
        yield
        pause()


def object_name(data: bytes) -> str:
    """The name of the object of a file of one chunk."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}-{len(data)}"


class Lazyfsd:
    """Keeper and daemon of `store`, which run. Looked up on every access: the daemon may have been killed."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def status(self, directory: Path | None = None) -> list[dict[str, Any]]:
        """The status of one mount, or of all. Waits while lazyfsd is being restarted."""
        *_, answer = Client(self.store).call(StatusOrder(str(directory or "")), start=False)
        mounts: list[dict[str, Any]] = msgspec.to_builtins(answer)["mounts"]
        return mounts

    def count(self, directory: Path, name: str) -> int:
        """One number of a mount's status."""
        number: int = self.status(directory)[0][name]
        return number

    @property
    def process(self) -> int:
        """The daemon's pid."""
        process: int = self.status()[0]["pid"]
        return process

    @property
    def keeper(self) -> int:
        """The keeper's pid, once the daemon has one."""
        return int(Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[1])

    def kill(self) -> int:
        """Kill the daemon. Returns the number of requests that it left unanswered."""
        process = self.process
        os.kill(process, signal.SIGKILL)
        waiting = self.waiting()
        await_end(process)
        return waiting

    def waiting(self) -> int:
        """Unanswered requests of the gate."""
        return requests_waiting(self.store)

    def abort(self) -> None:
        """Abort the gate's connection."""
        (_connection(self.store) / "abort").write_text("1")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Kill the daemon; its keeper does not start another one until the end of the block."""
        process, keeper = self.process, self.keeper
        os.kill(keeper, signal.SIGSTOP)
        try:
            os.kill(process, signal.SIGKILL)
            yield
        finally:
            os.kill(keeper, signal.SIGCONT)

    def lose(self) -> None:
        """Kill the keeper and the daemon: the connection ends."""
        process, keeper = self.process, self.keeper
        for each in (keeper, process):
            os.kill(each, signal.SIGKILL)
            await_end(each)

    def log(self) -> str:
        """The log of both."""
        return (self.store / "logs" / "lazyfsd.log").read_text()


def requests_waiting(store: Path) -> int:
    """Unanswered requests of a store's gate."""
    return int((_connection(store) / "waiting").read_text())


def _connection(store: Path) -> Path:
    gate = mounted_at(store / "gate")
    assert gate is not None
    path = Path(f"/sys/fs/fuse/connections/{os.minor(gate.number)}")
    if not path.exists():  # only systemd mounts it
        run("mount", "-t", "fusectl", "fusectl", "/sys/fs/fuse/connections")
    return path


def await_end(process: int, patience: float = PATIENCE_S) -> None:
    """Wait until a process is gone or a zombie. AssertionError if it stays."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        try:
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            assert ended.poll(patience * 1000), f"process {process} stays"
        finally:
            os.close(descriptor)


def remains(store: Path) -> list[str]:
    """What remains of `traces`. lazyfsd syncs the store last; `lazyfs umount` waits up to 10 s for that."""
    for _ in moments():
        if not (left := traces(store)):
            break
    return left


def traces(store: Path) -> list[str]:
    """What is left of a store's native mounts: mounts, processes, loop devices."""
    left = [f"mount {mount.path}" for mount in mounts() if str(store) in f"{mount.path} {mount.source} {mount.options}"]
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "lazyfs.daemon" in command and str(store) in command:
                left.append(f"process {process.name}: {command}")
    left += [
        line
        for line in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE").stdout.decode().splitlines()
        if str(store) in line
    ]
    return left
