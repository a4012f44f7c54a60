"""Unmounts a mount, or detaches it while it is in use."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lazyfs.errors import MountFailed
from lazyfs.kernel import mounting
from lazyfs.mount.status import ask_process
from lazyfs.mount.table import LazyfsMount, find_mount, holders

_ASK_DEADLINE: Final = 2.0
_END_DEADLINE: Final = 10.0


def unmount(directory: Path, *, lazy: bool = False) -> None:
    """Unmount the mount of lazyfs at `directory` and wait until its process has exited.

    `lazy` detaches a busy mount: it disappears at once, and ends with its last user. Raises MountFailed if there is no mount of lazyfs, or
    if it is busy; the message names the processes that use it.
    """
    mounted = find_mount(directory)
    if mounted is None:
        raise MountFailed(f"{directory} is not a lazyfs mount", hint="`lazyfs status` lists the mounts")
    with _server(mounted, lazy) as server:
        error = _umount2(mounted, lazy) if os.geteuid() == 0 else _fusermount(mounted, lazy)
        if error:
            busy = holders(mounted)
            if busy:
                raise MountFailed(
                    f"{directory} is busy: held by {', '.join(busy[:10])}", hint="Stop those processes, or detach it with --lazy"
                )
            raise MountFailed(f"cannot unmount {directory}: {error}", hint="`--lazy` detaches a busy mount")
        if server is not None:
            select.select([server], [], [], _END_DEADLINE)


def _umount2(mounted: LazyfsMount, lazy: bool) -> str:
    try:
        mounting.unmount(mounted.path, lazy=lazy)
    except OSError as error:
        return "it is busy" if error.errno == errno.EBUSY else str(error.strerror)
    return ""


def _fusermount(mounted: LazyfsMount, lazy: bool) -> str:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mounted.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "fusermount3 is not installed (Debian's package fuse3)"
    return "" if done.returncode == 0 else done.stderr.strip() or f"fusermount3 ended with {done.returncode}"


@contextmanager
def _server(mounted: LazyfsMount, lazy: bool) -> Iterator[int | None]:
    """A pidfd of the process that serves a mount, to wait for: it still has the store open after the unmount, and `store clear` or the
    next mount would conflict with it. None if there is no process to wait for, or it is this one.

    A lazy unmount does not ask for the pid: a request to a process that hangs would itself keep the mount busy.
    """
    process = None if lazy else ask_process(mounted.path, _ASK_DEADLINE)
    descriptor = None
    if process is not None and process != os.getpid():
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
