"""Mounts a FUSE connection without libfuse, which mounts only what it opens itself, and asks the kernel about connections.

Nothing here accesses a mounted file system: its server may be dead, or be the caller itself. Source: fuse(4), mount options;
Documentation/filesystems/fuse.rst.
"""

from __future__ import annotations

import os
from pathlib import Path

from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.mounting import NO_DEVICES, NO_SUID, Context, attach


def mount_fuse(connection: int, at: Path, subtype: str, source: str) -> None:
    """Mount `connection` (/dev/fuse, opened and not mounted yet) read-only at the directory `at`, for all users.

    The kernel's FUSE_INIT can be read from it afterwards. Raises OSError.
    """
    with Context("fuse") as context:
        context.set("source", source)
        context.set("subtype", subtype)
        context.set("fd", str(connection))
        context.set("rootmode", "40000")
        context.set("user_id", "0")
        context.set("group_id", "0")
        context.set("allow_other")
        context.set("default_permissions")
        context.set("ro")
        context.create()
        mount = context.mount(NO_SUID | NO_DEVICES)
    try:
        attach(mount, at)
    finally:
        os.close(mount)


def connection_number(connection: int) -> int | None:
    """The number of the connection behind a /dev/fuse descriptor: its file system's st_dev, its name under /sys/fs/fuse/connections.

    None if the kernel does not report it (proc(5), `fuse_connection` of fdinfo, from about 6.17) or if it is not mounted.
    """
    for line in Path(f"/proc/self/fdinfo/{connection}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "fuse_connection":
            return int(value)
    return None


def abort_connection(number: int) -> None:
    """Abort the connection: all its requests fail from now on. Raises OSError."""
    # Without systemd the control file system is usually not mounted. This detached mount of it goes with the descriptor.
    with Context("fusectl") as context:
        context.create()
        control = context.mount(0)
    try:
        # The device's minor number; FUSE mounts have the major number 0 of file systems without a device.
        abort = os.open(f"{os.minor(number)}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
        try:
            os.write(abort, b"1")
        finally:
            os.close(abort)
    except FileNotFoundError:
        pass  # it has ended
    finally:
        os.close(control)


def connections_at(at: Path, subtype: str) -> list[int]:
    """The numbers of the connections mounted at `at` (absolute, without symbolic links) as `fuse.SUBTYPE`, the uppermost last."""
    return [mount.number for mount in mounts() if mount.path == at and mount.kind == f"fuse.{subtype}"]
