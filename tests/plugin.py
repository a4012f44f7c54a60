"""lazyfsd as containerd's snapshotter: started as a service of its own store, and ended with nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.daemon.orders import StatusOrder
from lazyfs.kernel.mountinfo import mounts
from lazyfs.snapshots.database import Snapshots
from lazyfs.snapshots.snapshot import Snapshot
from tests.commands import run
from tests.lazyfsd import await_end, moments, requests_waiting

PATIENCE_S = 60
NAME = "lazyfs"
"""What containerd calls it in these tests: nothing depends on it."""


class Plugin:
    """A lazyfsd with one socket for a containerd. `folder` is on a disk, and its path is short."""

    def __init__(self, folder: Path, *, background: bool = True) -> None:
        """Without `background` it fetches nothing that nobody has asked for."""
        self.folder = folder
        self._background = background
        self.store, self.socket, self.log = folder / "store", folder / "snapshots.sock", folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once: calls wait at the socket."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        config = self.folder / "config.toml"
        config.write_text(f"background = {str(self._background).lower()}\n")
        command = [sys.executable, "-m", "lazyfs.daemon", "--config", config, "--store", self.store, "--snapshotter", self.socket]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**environment, "HOME": str(home)}
            )

    def stop(self) -> None:
        """As a service is stopped: what is mounted stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE_S)
        self._process = None

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

    def rows(self, name: str = "containerd") -> dict[str, Snapshot]:
        """The snapshots that it keeps for a containerd, by key."""
        with Snapshots(self.store / "containerd" / name) as snapshots:
            return {snapshot.key: snapshot for page in snapshots.pages() for snapshot in page}

    def status(self) -> dict[str, Any]:
        """What `lazyfs status` tells of it."""
        told = run(sys.executable, "-m", "lazyfs", "status", "--json", "--store", self.store).stdout
        service: dict[str, Any] = json.loads(told.splitlines()[-1])
        return service

    def kept(self) -> int:
        """How many objects its store has."""
        return len(os.listdir(self.store / "objects"))

    def left(self) -> list[str]:
        """What it has mounted."""
        return [str(mount.path) for mount in mounts() if mount.path.is_relative_to(self.folder)]

    def tidy_up(self) -> None:
        """End it, whatever a failed test left."""
        if self._process is not None:
            self.stop()
        for path in reversed(self.left()):
            run("umount", "--lazy", path, code=None)


@contextmanager
def plugin_at(*, background: bool = True) -> Iterator[Plugin]:
    """One that runs, in a folder that goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="lfs-", dir="/var/tmp"))
    folder.chmod(0o711)  # a container's root in a user namespace of its own passes through
    plugin = Plugin(folder, background=background)
    plugin.start()
    try:
        yield plugin
    finally:
        plugin.tidy_up()
        shutil.rmtree(folder, ignore_errors=True)
