"""Checks lazyfsd: its configuration, its sockets, and whether its mounts are visible."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lazyfs.daemon.client import Client
from lazyfs.daemon.config import Config, load_config
from lazyfs.doctor.finding import Finding, degraded, missing, ok
from lazyfs.doctor.machine import examine_files, own_files
from lazyfs.errors import LazyfsError, LocalError
from lazyfs.reports.orders import StatusOrder
from lazyfs.reports.status import ServiceStatus
from lazyfs.reports.wire import Refused

_PATIENCE: Final = 10.0
_NO_MOUNT: Final = "/"
_START: Final = "systemctl start lazyfs-snapshotter, or `lazyfsd --config`"


def read_config(path: Path) -> tuple[Config, Finding]:
    """The service's configuration; the defaults if there is no file."""
    if not path.exists():
        return Config(), degraded(
            "config", f"{path} does not exist: defaults apply", "systemd/install writes one that explains itself"
        )
    try:
        return load_config(path), ok("config", f"{path} is right")
    except LazyfsError as error:
        return Config(), missing("config", error.message, error.hint)


def examine_service(store: Path, config: Config) -> Iterator[Finding]:
    """Check the daemon of `store`, and the sockets that `config` names. Blocking, up to about 10 s."""
    try:
        *_, answer = Client(store, _PATIENCE).call(StatusOrder(_NO_MOUNT), start=False)
    except (LocalError, Refused) as error:
        yield missing("lazyfsd", error.message, _START)
        yield examine_files(own_files(), "this login")
        return
    assert isinstance(answer, ServiceStatus)
    process = answer.pid
    yield ok("lazyfsd", f"lazyfsd serves {store} (process {process})")
    yield from _process(process)
    for name, path in config.containerds.items():
        yield _socket(name, path)


def _process(process: int) -> Iterator[Finding]:
    try:
        own, here = (os.readlink(f"/proc/{each}/ns/mnt") for each in (process, "self"))
        limits = Path(f"/proc/{process}/limits").read_text()
    except OSError as error:
        yield degraded("namespace", f"process {process} cannot be inspected: {error.strerror}")
        return
    if own == here:
        yield ok("namespace", "mounts of lazyfsd are visible here")
    else:
        yield missing(
            "namespace",
            "lazyfsd is in another mount namespace: its mounts are not visible here, nor to containerd",
            "Take PrivateTmp, ProtectSystem and their likes out of its unit (`systemctl cat lazyfs-snapshotter`)",
        )
    found = re.search(r"^Max open files +\S+ +(\d+|unlimited)", limits, re.MULTILINE)
    if found:
        yield examine_files(-1 if found[1] == "unlimited" else int(found[1]), "lazyfsd")


def _socket(name: str, path: Path) -> Finding:
    about = f"snapshotter.{name}"
    try:
        from lazyfs.containerd.probe import Probe
    except (ImportError, RuntimeError):
        return missing(about, f"{path} cannot be checked without grpcio", "pip install 'lazyfs[containerd]'")
    probe = Probe(path)
    try:
        silence = probe.ask(_PATIENCE) if path.is_socket() else "there is no such socket"
    finally:
        probe.close()
    if silence:
        return missing(about, f"the snapshotter for {name} does not serve at {path}: {silence}", _START)
    return ok(about, f"the snapshotter for {name} answers at {path}")
