"""The way out of a lazyfsd that cannot come up: its connection is given up, and all that it had mounted is detached.

Whoever waits for the gate is told an error at once, also who cannot be killed. Nothing on disk is lost: the next lazyfsd begins with a
gate of its own, and makes containers' roots anew when containerd asks for them. Reads the kernel's table only, and touches no mount.
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
    """Give up everything that a lazyfsd of `store` has mounted. What was mounted, to be said. Blocking. Raises MountFailed."""
    store = store.resolve()
    there = mounts()
    gates = [mount for mount in there if mount.path == store / GATE and mount.kind == _GATE]
    try:
        # First: an unmount may wait for an answer of the gate.
        for gate in gates:
            abort_connection(gate.number)
        layers = [mount for mount in there if mount.path.parent == mount_points(store) and mount.kind == "erofs"]
        ours = [mount for mount in there if belongs_to(mount, store)]
        for mount in (*reversed(ours), *reversed(layers), *reversed(gates)):
            unmount(mount.path, lazy=True)
    except OSError as error:
        raise MountFailed(f"not all mounts of {store} could be removed: {error}") from error
    return tuple(mount.path for mount in (*ours, *layers, *gates))
