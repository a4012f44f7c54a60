"""containerd with nothing in it, and lazyfsd with nothing in its store, for one round of a measurement."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.place import Place
from lazyfs.daemon.client import Client, DaemonUnreachable
from lazyfs.kernel.mountinfo import mounts
from lazyfs.reports.orders import StatusOrder
from tests.commands import run
from tests.containerd import Containerd

LAZYFSD = Path(sys.executable).with_name("lazyfsd")
OURS = "lazyfs"
"""What containerd calls us."""
PATIENCE_S = 60
PULLED_S = 300
CONFIG = """background = {background}
[[containerd]]
socket = "{socket}"
"""
PLAIN_HTTP = """[registry."{host}"]
plain_http = true
"""


class Lazyfsd:
    """The service of a store, running."""

    def __init__(self, process: subprocess.Popen[bytes], store: Path, socket: Path) -> None:
        self.keeper = process.pid
        self.store, self.socket = store, socket

    def status(self) -> dict[str, Any]:
        """What `lazyfs status --json` is made of. Raises DaemonUnreachable."""
        *_, report = Client(self.store).call(StatusOrder(""), start=False)
        return dict(msgspec.to_builtins(report))

    def wait_until_ready(self) -> None:
        """Until it answers."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.status()
            except DaemonUnreachable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                return

    def wait_until_pulled(self, *, uses: int = 0) -> None:
        """Until the rest of every pull is here, and layers are used only by roots: so many times. TimeoutError, RuntimeError."""
        end = time.monotonic() + PULLED_S
        while True:
            layers = [layer for containerd in self.status()["containerds"] for layer in containerd["lazy"]]
            if troubles := [layer["trouble"] for layer in layers if layer["trouble"]]:
                raise RuntimeError(troubles[0])
            if layers and sum(layer["uses"] for layer in layers) == uses:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"not all of {len(layers)} layers is here after {PULLED_S} s")
            time.sleep(0.1)


@contextmanager
def lazyfsd(place: Place, *, background: bool = True, plain_http: str = "") -> Iterator[Lazyfsd]:
    """lazyfsd with an empty store, ready; `plain_http`: a registry that is not on loopback. Nothing that it has mounted stays."""
    folder = place.new_folder()
    store, socket, config = folder / "store", folder / "socket", folder / "config.toml"
    text = CONFIG.format(background=str(background).lower(), socket=socket)
    config.write_text(text + (PLAIN_HTTP.format(host=plain_http) if plain_http else ""))
    command: list[str | Path] = [LAZYFSD, "--config", config, "--store", store]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=place.environment)
    try:
        daemon = Lazyfsd(process, store, socket)
        daemon.wait_until_ready()
        yield daemon
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
        for mount in reversed([mount.path for mount in mounts() if mount.path.is_relative_to(folder)]):
            run("umount", "--lazy", mount, code=None)


@contextmanager
def containerd(place: Place, **sockets: Path) -> Iterator[Containerd]:
    """A containerd with nothing in it; `sockets`: other snapshotters than its own, by name."""
    with Containerd(place.new_folder() / "c", sockets) as running:
        for name in sockets:  # none of them is still starting when it is measured
            running.ctr("snapshots", "--snapshotter", name, "list")
        yield running


def pull(running: Containerd, reference: str, snapshotter: str) -> str:
    """A first pull, as a user of this snapshotter makes it. How containerd calls the image."""
    return running.pull(reference) if snapshotter == "overlayfs" else running.pull_lazily(reference, snapshotter)
