"""A lazyfsd whose images are toys: the real keeper, the real session, and tests/toy_gate.py for a gate."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.mounting import unmount
from tests.toy_gate import content

PATIENCE_S: Final = 60.0


def check(path: Path) -> None:
    """Read a file of a toy gate, and hold its bytes against its name. AssertionError when there is no answer."""
    got: list[bytes | OSError] = []

    def read() -> None:
        try:
            got.append(path.read_bytes())
        except OSError as error:
            got.append(error)

    # Nothing else ends the wait for an unserved gate; the end of the connection frees the thread.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert got == [content(path.name)]


class ToyDaemon:
    """Keeper and daemon of one state directory. A context manager: at its end nothing of them is left."""

    def __init__(self, state: Path, pause: float = 0.0, wrapper: Sequence[str] = ()) -> None:
        self.state = state
        state.mkdir()
        self.gate = state / "gate"
        self._command = [*wrapper, sys.executable, "-m", "tests.toy_gate", "--keeper", str(state), str(pause)]
        self.keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it; the number of the daemon's process, which serves."""
        self.keeper = subprocess.Popen(self._command, stderr=subprocess.PIPE)
        return self.await_process(0)

    def await_process(self, old: int) -> int:
        """The number of the process that serves, once it is not `old` any more."""
        assert self.keeper is not None
        seen = select.poll()
        for _ in range(int(PATIENCE_S * 100)):
            assert self.keeper.poll() is None, f"the keeper has ended with {self.keeper.returncode}: {self.log()}"
            if (self.state / "process").exists():
                found = int((self.state / "process").read_text() or old)
                if found != old:
                    return found
            seen.poll(10)
        raise AssertionError(f"no new process serves: {self.log()}")

    def kill(self) -> int:
        """Kill the daemon; the number of the next one, which serves."""
        old = int((self.state / "process").read_text())
        os.kill(old, signal.SIGKILL)
        return self.await_process(old)

    def wait(self) -> int:
        """The keeper's exit code."""
        assert self.keeper is not None
        return self.keeper.wait(PATIENCE_S)

    def asked(self) -> list[str]:
        """The names that were looked up, as often as they were."""
        return self._lines("asked")

    def read(self) -> list[str]:
        """Likewise of what was read."""
        return self._lines("read")

    def _lines(self, name: str) -> list[str]:
        path = self.state / name
        return path.read_text().splitlines() if path.exists() else []

    def log(self) -> str:
        """The log of both."""
        path = self.state / "logs" / "lazyfsd.log"
        return path.read_text() if path.exists() else ""

    def connections(self) -> list[int]:
        """The connections mounted as its gate."""
        return [mount.number for mount in mounts() if mount.path == self.gate]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self.connections():
            unmount(self.gate, lazy=True)
        if self.keeper is not None:
            with self.keeper:
                # Somebody may hold the connection still; the daemon ends only with that.
                self.keeper.kill()
        for process in _processes_of(self.state):
            os.kill(process, signal.SIGKILL)


def _processes_of(state: Path) -> list[int]:
    """The processes that serve a state directory, found by their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if {b"tests.toy_gate", os.fsencode(state)} <= set(words):
            found.append(int(path.parent.name))
    return found
