"""Removes everything that a lazyfsd has mounted, for a lazyfsd that cannot start: its FUSE connection is aborted, its mounts are detached.

Processes that wait for the gate get an error at once, even those that cannot be killed. Nothing on disk is lost: the next lazyfsd makes a
new gate, and mounts the roots of containers again when containerd asks for them. This reads the kernel's mount table and touches no mount.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lazyfs.errors import MountFailed
from lazyfs.kernel.fuse_mount import abort_connection
from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.mounting import unmount
from lazyfs.native.data_layers import belongs_to
from lazyfs.native.layers import mount_points
from lazyfs.store.folders import GATE

_GATE: Final = "fuse.lazyfs-gate"


def abort(store: Path) -> tuple[Path, ...]:
    """Abort and detach everything that a lazyfsd of `store` has mounted; returns the mount points. Blocking. Raises MountFailed."""
    store = store.resolve()
    there = mounts()
    gates = [mount for mount in there if mount.path == store / GATE and mount.kind == _GATE]
    try:
        # First, because an unmount may wait for an answer of the gate.
        for gate in gates:
            abort_connection(gate.number)
        layers = [mount for mount in there if mount.path.parent == mount_points(store) and mount.kind == "erofs"]
        ours = [mount for mount in there if belongs_to(mount, store)]
        for mount in (*reversed(ours), *reversed(layers), *reversed(gates)):
            unmount(mount.path, lazy=True)
    except OSError as error:
        raise MountFailed(f"not all mounts of {store} could be removed: {error}") from error
    return tuple(mount.path for mount in (*ours, *layers, *gates))
