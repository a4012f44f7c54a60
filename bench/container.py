"""A container with one program in it, the reader (reader.c), which measures from the inside as its arguments say.

Both sides of every comparison run in the same bundle with the same runc; only what is mounted at its `rootfs` differs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from lazyfs.bundle.account import Account
from lazyfs.bundle.bundle import ROOT
from lazyfs.bundle.machine import this_machine
from lazyfs.bundle.settings import Settings
from lazyfs.bundle.spec import make_spec
from tests.commands import run

READER = "reader"
TOOLS = "/mnt"
"""Where the reader, and what it is to read, is found inside."""
MOST = 1 << 62


class Pass(NamedTuple):
    """What one command of the reader's took."""

    count: int
    seconds: float
    size: int
    """Bytes read."""

    @property
    def each(self) -> float:
        """Microseconds a file."""
        return self.seconds * 1e6 / self.count


def build_reader(folder: Path) -> Path:
    """Compile the reader into the new directory `folder`, for containers to find it there."""
    folder.mkdir()
    source = Path(__file__).with_name("reader.c")
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", folder / READER, source)
    return folder


def write_bundle(bundle: Path, *command: str, tools: Path) -> None:
    """Write `bundle`/config.json for a command as root, `tools` inside; `bundle`/rootfs is not looked into."""
    settings = Settings(command, ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",), "", "/")
    spec = make_spec(settings, Account(), this_machine(), hostname="bench", net="none", terminal=None)
    spec["mounts"].append({"destination": TOOLS, "type": "bind", "source": str(tools), "options": ["bind", "ro"]})
    (bundle / "config.json").write_bytes(msgspec.json.encode(spec))


class Container:
    """The reader in a container of `bundle`, at whose `rootfs` something is mounted. It ends with its standard input: with us."""

    def __init__(self, bundle: Path, tools: Path) -> None:
        self._bundle, self._tools = bundle, tools
        self._state = bundle / "runc"
        self._name = f"bench-{bundle.parent.name}-{bundle.name}"

    def __enter__(self) -> Self:
        write_bundle(self._bundle, f"{TOOLS}/{READER}", tools=self._tools)
        command = ["runc", "--root", str(self._state), "run", "--bundle", str(self._bundle), self._name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.order("list", "/dev/null")  # what runc itself looks at in the image, passwd and group, it has seen by then
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            run("runc", "--root", self._state, "delete", "--force", self._name, code=None)
            self._process.kill()
            self._process.wait()

    def order(self, *command: str | int) -> Pass:
        """Have the reader do something. RuntimeError when it ends instead; it has said why."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(" ".join(map(str, command)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        if not answer:
            raise RuntimeError(f"the reader ended at {command}")
        count, nanoseconds, size = map(int, answer)
        return Pass(count, nanoseconds / 1e9, size)

    def read(self, least: int = 0, most: int = MOST) -> Pass:
        """Open and read every file of `least` bytes or more and less than `most`."""
        return self.order("read", least, most)


def root_of(bundle: Path) -> Path:
    """Where what the container sees is mounted; made where it is not there."""
    root = bundle / ROOT
    root.mkdir(parents=True, exist_ok=True)
    return root
