"""Containers that stay until they are killed, and programs that are run in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.containerd import Containerd
from tests.lazyfsd import moments
from tests.plugin import NAME


@contextmanager
def sleeping(containerd: Containerd, image: str, *command: str) -> Iterator[str]:
    """A container that stays, by its name."""
    name = f"{containerd.folder.parent.name}-{containerd.folder.name}-sleeper"
    containerd.ctr("run", "--detach", "--snapshotter", NAME, image, name, *command)
    try:
        yield name
    finally:
        containerd.ctr("tasks", "kill", "--signal", "KILL", name)
        for _ in moments():
            if b"RUNNING" not in containerd.ctr("tasks", "ls").stdout:
                break
        containerd.ctr("tasks", "rm", name, code=None)
        containerd.ctr("containers", "rm", name)


def printed(containerd: Containerd, sleeper: str, *command: str, code: int = 0) -> str:
    """What a command in a container that runs prints."""
    return containerd.ctr("tasks", "exec", "--exec-id", "one", sleeper, *command, code=code).stdout.decode()
