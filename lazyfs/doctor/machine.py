"""Checks the machine: root, FUSE, kernel features, limits, Python packages."""

from __future__ import annotations

import importlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lazyfs.doctor.finding import Finding, degraded, missing, ok
from lazyfs.native.probe import probe

_RESEND: Final = (6, 9)
_LONGEST_REQUEST: Final = 120
"""Seconds: twice the timeout of a read (lazyfs/fetch/fetcher.py)."""
_FILES: Final = 65_536
"""Open files: a busy lazyfsd has some ten thousand."""
_TIMEOUTS: Final = ("default_request_timeout", "max_request_timeout")
_PACKAGES: Final = {
    "pyfuse3": ("pyfuse3", "nothing can be mounted", "pip install 'lazyfs[mount]'"),
    "grpcio": (
        "lazyfs.api.services.snapshots.v1.snapshots_pb2_grpc",
        "containerd cannot be served",
        "pip install 'lazyfs[containerd]'",
    ),
}


def examine_machine(store: Path, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Check the machine; `store` is the store's directory, which may not exist yet. Blocking, some ms."""
    root = os.geteuid() == 0
    if root:
        yield ok("root", "running as root: native mounts and containerd are possible")
    else:
        yield missing("root", "not running as root: only portable mounts are possible", "Run lazyfs doctor as root")
    yield from _fuse()
    if root:
        yield from _kernel(store)
    yield _resend(os.uname().release)
    yield _timeouts(proc / "sys" / "fs" / "fuse")
    yield from _packages()


def examine_files(limit: int, whose: str) -> Finding:
    """Whether the limit of open files, of the process `whose`, is high enough."""
    if 0 <= limit < _FILES:
        return degraded(
            "files",
            f"{whose} may open {limit} files: many containers need more",
            f"LimitNOFILE={_FILES}, or `ulimit -n {_FILES}`",
        )
    return ok("files", f"{whose} may open {'as many files as it likes' if limit < 0 else f'{limit} files'}")


def own_files() -> int:
    """How many files this process may open; -1 means no limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _fuse() -> Iterator[Finding]:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        yield missing(
            "fuse", f"/dev/fuse cannot be opened: {error.strerror}", "`modprobe fuse`; in a container, give it that device"
        )
    else:
        yield ok("fuse", "/dev/fuse is there")


def _kernel(store: Path) -> Iterator[Finding]:
    folder = next(path for path in (store, *store.parents) if path.is_dir())
    verdict = probe(folder)
    if not verdict.native:
        yield missing(
            "native",
            f"this machine cannot mount natively in {folder}: {verdict.reason}",
            "It takes Linux 6.7 or newer with EROFS and overlayfs, and a store on ext4, xfs or tmpfs",
        )
        return
    yield ok("native", f"native mounts work in {folder}")
    if verdict.file_backed:
        yield ok("erofs", "EROFS images are mounted directly")
    else:
        yield degraded(
            "erofs",
            "EROFS images are mounted through loop devices: one for each layer",
            "Linux 6.12 or newer needs none, unless the store lies on tmpfs",
        )


def _resend(release: str) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) >= _RESEND:
        return ok("resend", f"Linux {release} repeats requests that a killed lazyfsd had not answered")
    return degraded(
        "resend",
        f"Linux {release} does not repeat requests that a killed lazyfsd had not answered: their callers wait until the connection is"
        " aborted (`lazyfs umount --abort`)",
        "Linux 6.9 or newer does",
    )


def _timeouts(folder: Path) -> Finding:
    short = {}
    for name in _TIMEOUTS:
        try:
            value = int((folder / name).read_text())
        except (OSError, ValueError):
            continue  # they exist since Linux 6.14
        if 0 < value < _LONGEST_REQUEST:
            short[name] = value
    if short:
        named = " and ".join(f"fs.fuse.{name} = {value}" for name, value in short.items())
        return missing(
            "timeouts",
            f"{named}: the kernel aborts the connection of all mounts when one read takes that many seconds",
            f"sysctl -w {' '.join(f'fs.fuse.{name}=0' for name in short)}, and in /etc/sysctl.d",
        )
    return ok("timeouts", "the kernel does not abort a connection over a slow read")


def _packages() -> Iterator[Finding]:
    for name, (module, what, cure) in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # generated code refuses a protobuf that is too old with a RuntimeError
            yield missing(name, f"{what}: {error}", cure)
        else:
            yield ok(name, f"{name} is there")
