"""The data-only layers of our overlays: where the kernel looks for a file's bytes, and in which order.

    objects          what is here
    gate/objects     asks lazyfsd, which fetches the file and publishes it, or serves it from the gate itself
    arrived          what the gate has just published; an overlay does not look into `objects` twice
    gate/nowhere     an error for every name: overlayfs keeps the answer of its last layer, and does not keep an error

Every overlay whose files can be missing has these four. One that records what is touched has `gate/record-N` in place of the first
two, so that it asks for every file. An overlay that was mounted by an earlier version keeps its layers, so what is recognised here
must not change.
"""

from __future__ import annotations

from pathlib import Path

from lazyfs.kernel.mountinfo import MountInfo
from lazyfs.store.folders import ARRIVED, GATE, GATE_NOWHERE, GATE_OBJECTS, OBJECTS, gate_record


def data_layers(store: Path, *, record: int | None = None) -> tuple[Path, ...]:
    """The data layers of an overlay of `store`, in the order of lookup. `record`: the number of the recording that it is mounted for."""
    gate = store / GATE
    first = (store / OBJECTS, gate / GATE_OBJECTS) if record is None else (gate / gate_record(record),)
    return (*first, store / ARRIVED, gate / GATE_NOWHERE)


def objects_only(store: Path) -> tuple[Path, ...]:
    """The data layers of an overlay whose files nobody opens: it asks for nothing, so the gate need not answer."""
    return (store / OBJECTS,)


def belongs_to(mount: MountInfo, store: Path) -> bool:
    """Whether `mount` is an overlay over the data layers of `store`, an absolute path without symbolic links."""
    return mount.kind == "overlay" and str(store / ARRIVED) in mount.values("datadir+")


def store_of(mount: MountInfo) -> Path | None:
    """The store whose data layers an overlay has. None where the kernel's table does not show it: a name too long for the kernel
    stands there as a descriptor in /proc."""
    return next((path.parent for path in map(Path, mount.values("datadir+")) if path.name == ARRIVED), None)
