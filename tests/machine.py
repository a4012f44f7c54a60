"""A machine with a real systemd on which lazyfs is installed as a service, as systemd/install does it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Final

from tests.lazyfsd import await_end, moments
from tests.systemd import ROOT, Systemd

SERVICE: Final = "lazyfs-snapshotter.service"
LAZYFS: Final = "/opt/lazyfs/bin/lazyfs"
CONFIG: Final = "/etc/lazyfs/config.toml"
SOCKET: Final = "/run/lazyfs/snapshots.sock"
STORE: Final = "/var/lib/lazyfs"
_READER = """[Service]
Type=oneshot
ExecStart=sh -c 'exec cat "$(cat /run/reader.path)"'
StandardOutput=truncate:/run/reader.data
"""


class Machine(Systemd):
    """One on which lazyfs can be installed, with nothing downloaded."""

    wheels = Path()

    def install(self, *options: str, code: int = 0, checkout: Path = ROOT) -> str:
        """Run systemd/install. What it says."""
        offline = ("PIP_NO_INDEX=1", f"PIP_FIND_LINKS={self.wheels}")
        done = self.run("env", *offline, "/usr/bin/python3", checkout / "systemd" / "install", *options, code=code, timeout=300)
        return (done.stdout + done.stderr).decode()

    def main_process(self) -> int:
        """The service's, as this machine's kernel numbers it."""
        for _ in moments():
            if (inside := self.show(SERVICE, "MainPID")) != "0":
                break
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.MULTILINE)
            except OSError:
                continue
            if numbers and numbers[2] == inside and os.readlink(status.parent / "ns" / "pid") == self._namespace():
                return int(numbers[1])
        raise AssertionError(f"there is no process {inside}")

    def kill(self) -> None:
        """`kill -9` of the daemon; it is dead afterwards."""
        process = self.main_process()
        os.kill(process, signal.SIGKILL)
        await_end(process)

    def gate(self) -> str:
        """The number of the connection that is mounted as the gate; another one would be another gate."""
        found = re.findall(rf"^\S+ \S+ (\S+) / {STORE}/gate ", self.mounts(), re.MULTILINE)
        assert len(found) == 1
        return str(found[0])

    def read(self, path: str | Path) -> bytes:
        """A file as somebody else's unit sees it."""
        unit = self.path("/etc/systemd/system/reader.service")
        if not unit.exists():
            unit.write_text(_READER)
            self.run("systemctl", "daemon-reload")
        self.path("/run/reader.path").write_text(str(path))
        self.run("systemctl", "start", "reader.service")
        return self.path("/run/reader.data").read_bytes()

    def _namespace(self) -> str:
        return os.readlink(f"/proc/{self.process}/ns/pid")
