"""A real systemd: Debian's, as PID 1 of namespaces of its own, over a throw-away overlay of this machine's root.

All that it mounts, starts and writes is gone when its PID 1 is: the overlay's upper layer is a tmpfs, which only its mount namespace has.
/var/lib is a tmpfs as well, because a store cannot lie on an overlay. The network is this machine's: a registry on loopback is reached.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from tests.commands import Done, run

INIT: Final = "/lib/systemd/systemd"
ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 60.0
_BOOT: Final = r"""
set -e
folder=$1 checkout=$2
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
cd "$folder"; mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root
mount -t proc proc root/proc
mount -t sysfs sysfs root/sys
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs root/dev
(cd /dev && cp -a null zero full random urandom tty fuse loop* "$folder/root/dev")  # not the machine's own: systemd writes there
mkdir root/dev/shm root/dev/pts
mount -t tmpfs -o mode=755 tmpfs root/run
mount -t tmpfs tmpfs root/tmp
mount -t tmpfs -o mode=755 tmpfs root/var/lib
# Behind those: it may lie in one of them.
mkdir -p "root$checkout"
mount --bind "$checkout" "root$checkout"
mount -o remount,bind,ro "root$checkout"
rm -rf root/etc/systemd/system root/opt/lazyfs root/etc/lazyfs
# Of what would start by itself nothing may see to the machine's devices, modules and settings: the journal is enough.
rm -f root/lib/systemd/system/*.wants/*
: > root/etc/fstab
mkdir -p root/etc/systemd/system/sysinit.target.wants
ln -s /lib/systemd/system/multi-user.target root/etc/systemd/system/default.target
for unit in systemd-journald.service sys-fs-fuse-connections.mount; do
    ln -s "/lib/systemd/system/$unit" root/etc/systemd/system/sysinit.target.wants
done
cd root; mkdir -p oldroot
pivot_root . oldroot
umount -l /oldroot
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin "$3" --system --show-status=0 --log-target=journal
"""


class Systemd:
    """`folder` becomes a mount point of the new namespace alone. None of the machine's own units runs in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._outer: subprocess.Popen[bytes] | None = None
        self.process = 0
        """Its PID 1, as this machine's kernel numbers it."""

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        command = ["unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]
        with (self._folder / "log").open("wb") as log:
            self._outer = subprocess.Popen(
                [*command, "bash", "-c", _BOOT, "bash", self._folder, ROOT, INIT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.process = self._first_process()
            self._await_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._outer is not None
        if self.process:
            os.kill(self.process, signal.SIGKILL)  # and the kernel kills the rest
        self._outer.kill()
        self._outer.wait(PATIENCE_S)

    def run(self, *command: str | Path, code: int | None = 0, timeout: float = 120) -> Done:
        """Run a program in there, with a clean environment."""
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        return run(*self._enter, *clean, *command, code=code, timeout=timeout)

    def said(self, *command: str | Path) -> str:
        """What a program in there prints."""
        return self.run(*command).stdout.decode().strip()

    def popen(self, *command: str | Path, folder: Path = Path("/")) -> subprocess.Popen[bytes]:
        """Start a program in there, in a folder of there."""
        return subprocess.Popen([*self._enter, "env", f"--chdir={folder}", *command], stdin=subprocess.DEVNULL)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.said("systemctl", "show", "--property", name, "--value", unit)

    def path(self, inside: str | Path) -> Path:
        """Where a file of in there is seen from here; of no use for what a mount shows that may hang."""
        return Path(f"/proc/{self.process}/root{inside}")

    def mounts(self) -> str:
        """What is mounted in there."""
        return Path(f"/proc/{self.process}/mountinfo").read_text()

    def log(self) -> str:
        """What was said before there was a journal."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.process), "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--root", "--wd"]

    def _first_process(self) -> int:
        assert self._outer is not None
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        for _ in _moments():
            if self._outer.poll() is not None:
                raise RuntimeError(f"systemd does not start: {self.log()}")
            if found := children.read_text().split():
                return int(found[0])
        raise RuntimeError("unshare does not come to fork")

    def _await_boot(self) -> None:
        for _ in _moments():
            # Before, its root is still this machine's, whose own systemd would answer.
            if Path(f"/proc/{self.process}/comm").read_text() != "systemd\n":
                continue
            state = run(*self._enter, "systemctl", "is-system-running", code=None).stdout.strip()
            if state in {b"running", b"degraded"}:
                return
        raise RuntimeError(f"systemd does not come up: {self.log()[-4000:]}")


def _moments() -> Iterator[None]:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
