"""lazyfsd as containerd's snapshotter: started as a service of its own store, and ended with nothing left."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.kernel.mountinfo import mounts
from lazyfs.reports.orders import StatusOrder
from lazyfs.snapshots.database import Snapshots
from lazyfs.snapshots.snapshot import Snapshot
from tests.commands import run
from tests.lazyfsd import await_end, moments, requests_waiting

PATIENCE_S = 60
NAME = "lazyfs"
"""What containerd calls it in these tests: nothing depends on it."""
CONTAINERD = "containerd"
"""The default name of its containerd."""


class Plugin:
    """A lazyfsd with a socket for each containerd that it serves. `folder` is on a disk, and its path is short."""

    def __init__(self, folder: Path, *names: str, background: bool = True) -> None:
        """`names`: what it calls its containerds. Without `background` it fetches only what is requested."""
        self.folder = folder
        self._background = background
        self.store, self.home, self.log = folder / "store", folder / "home", folder / "log"
        self.sockets = {name: folder / f"{name}.sock" for name in names or (CONTAINERD,)}
        self.socket = next(iter(self.sockets.values()))
        self.home.mkdir(parents=True, exist_ok=True)
        self.environment: dict[str, str] = {}
        """Environment variables to add."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> int:
        """Its keeper's number."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns at once: calls wait at the socket."""
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        config = self.folder / "config.toml"
        config.write_text(f"background = {str(self._background).lower()}\n")
        command: list[str | Path] = [sys.executable, "-m", "lazyfs.daemon", "--config", config, "--store", self.store]
        command += [f"--snapshotter={name}={socket}" for name, socket in self.sockets.items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "HOME": str(self.home), **self.environment},
            )

    def stop(self) -> None:
        """As a service is stopped: what is mounted stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> int:
        """Until it has ended by itself: its exit code."""
        assert self._process is not None
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    def kill(self) -> int:
        """Kill the daemon; its keeper starts another one. How many requests of the gate it has left unanswered."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for _ in moments():
            if daemons := children.read_text().split():
                break
        os.kill(int(daemons[0]), signal.SIGKILL)
        waiting = requests_waiting(self.store)
        await_end(int(daemons[0]))
        return waiting

    def wait_until_ready(self) -> None:
        """Until it answers."""
        for _ in moments():
            with suppress(DaemonUnreachable):  # it has only just been started
                list(Client(self.store).call(StatusOrder(""), start=False))
                return
        raise AssertionError(self.logged())

    def logged(self) -> str:
        """What it has said: the daemon's log is its keeper's."""
        logs = self.store / "logs" / "lazyfsd.log"
        return logs.read_text() if logs.exists() else self.log.read_text()

    def rows(self, name: str = CONTAINERD) -> dict[str, Snapshot]:
        """The snapshots that it keeps for a containerd, by key."""
        with Snapshots(self.store / "containerd" / name) as snapshots:
            return {snapshot.key: snapshot for page in snapshots.pages() for snapshot in page}

    def status(self) -> dict[str, Any]:
        """Its status from `lazyfs status`, whose exit code also depends on other mounts on this machine."""
        output = run(sys.executable, "-m", "lazyfs", "status", "--json", "--store", self.store, code=None).stdout
        service: dict[str, Any] = json.loads(output.splitlines()[-1])
        return service

    def kept(self) -> int:
        """How many objects its store has."""
        return len(os.listdir(self.store / "objects"))

    def left(self) -> list[str]:
        """What it has mounted."""
        return [str(mount.path) for mount in mounts() if mount.path.is_relative_to(self.folder)]

    def await_empty(self) -> None:
        """Until nothing of any snapshot is left. AssertionError, with what is, when it stays."""
        for _ in moments():
            left = self._of_snapshots()
            if not left:
                return
        raise AssertionError(left)

    def _of_snapshots(self) -> list[str]:
        """Rows, directories, mounts, loop devices."""
        found = []
        for name in self.sockets:
            found += [f"row {key}" for key in self.rows(name)]
            found += [f"directory {path}" for path in (self.store / "containerd" / name / "snapshots").iterdir()]
        # The gate is a service's own.
        found += [f"mount {path}" for path in self.left() if path != str(self.store / "gate")]
        loops = run("losetup", "--list", "--noheadings", "--output", "BACK-FILE").stdout.decode().splitlines()
        return found + [f"loop device of {name}" for name in loops if str(self.folder) in name]

    def descriptors(self) -> Counter[str]:
        """What the daemon has open, how often; what has no name, and the process's own folder, by its kind."""
        folder = Path(f"/proc/{self.status()['pid']}/fd")
        found: Counter[str] = Counter()
        own = re.escape(str(self.store / "tmp"))
        for descriptor in list(folder.iterdir()):
            with suppress(FileNotFoundError):  # of the listing itself
                found[re.sub(rf"^{own}/[^/]+|:\[[0-9]+\]$", "", os.readlink(descriptor))] += 1
        return found

    def tidy_up(self) -> None:
        """End it, whatever a failed test left."""
        if self._process is not None:
            self.stop()
        for path in reversed(self.left()):
            run("umount", "--lazy", path, code=None)


@contextmanager
def plugin_folder() -> Iterator[Path]:
    """A folder for one, on a disk and with a short path, that goes with the block. Containers may have its name in theirs."""
    folder = Path("/var/tmp") / f"lfs-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o711)  # a container's root in a user namespace of its own passes through
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def plugin_at(*names: str, background: bool = True) -> Iterator[Plugin]:
    """One that is ready, in a folder that goes with it. As Plugin."""
    with plugin_folder() as folder:
        plugin = Plugin(folder, *names, background=background)
        plugin.start()
        try:
            plugin.wait_until_ready()
            yield plugin
        finally:
            plugin.tidy_up()
