"""The config.json of an OCI bundle: as `runc spec` writes it, for the image's program.

Source: the OCI runtime specification, config.md and config-linux.md. Where `runc spec` is only an example, containerd's defaults are used:
with the three capabilities of the example an entrypoint could not chown its own data, and its read-only root and 1,024 open files do not
suit images. There are no ambient capabilities: the image's other users do not get root's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, Literal

from lazyfs.bundle.account import Account
from lazyfs.bundle.machine import Machine
from lazyfs.bundle.settings import Settings

Net = Literal["host", "none"]

_OPEN_FILES: Final = 1024
"""The soft limit, Linux's default; a program can raise it."""

_CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip

_MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_MOUNTS: Final = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108 (the container's)
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)


def make_spec(
    settings: Settings,
    account: Account,
    machine: Machine,
    *,
    hostname: str,
    net: Net,
    terminal: os.terminal_size | None,
    new_privileges: bool = False,
) -> dict[str, Any]:
    """The document, for a root file system at `rootfs` beside it.

    `hostname` is used if the container has a network of its own; `terminal` is the initial size of its terminal, if it has one. With
    `new_privileges`, setuid programs and file capabilities grant privileges within the bounding set, as in Docker.
    """
    namespaces = ["pid", "ipc", "uts", "mount"]
    if net == "none":
        namespaces.append("network")
    if machine.unified_cgroups:
        namespaces.append("cgroup")
    mounts = [
        {"destination": destination, "type": kind, "source": source, "options": options}
        for destination, kind, source, options in _MOUNTS
    ]
    if net == "host":
        # With the machine's network, names are resolved as on the machine.
        mounts += [
            {"destination": name, "type": "bind", "source": name, "options": ("bind", "ro", "nosuid", "noexec", "nodev")}
            for name in machine.network_files
        ]
    console = {"consoleSize": {"width": terminal.columns, "height": terminal.lines}} if terminal else {}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal is not None,
            **console,
            "user": {"uid": account.uid, "gid": account.gid, "additionalGids": account.groups},
            "args": settings.args,
            "env": _environment(settings.env, account, terminal=terminal is not None),
            "cwd": settings.workdir,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": min(_OPEN_FILES, machine.open_files), "hard": machine.open_files}],
            "noNewPrivileges": not new_privileges,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": machine.hostname if net == "host" else hostname,
        "mounts": mounts,
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": name} for name in namespaces],
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
    }


def _environment(env: Sequence[str], account: Account, *, terminal: bool) -> list[str]:
    """`env` with HOME and TERM, unless they are set."""
    added = {"HOME": account.home} | ({"TERM": "xterm"} if terminal else {})
    named = {text.partition("=")[0] for text in env}
    return [*env, *(f"{name}={value}" for name, value in added.items() if name not in named)]
