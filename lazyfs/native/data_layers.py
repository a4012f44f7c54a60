"""The data-only layers of an overlay: where the kernel looks for a file's data, and in which order.

    objects          what is in the store
    gate/objects     a lookup asks lazyfsd, which fetches the file and publishes it, or serves it from the gate
    arrived          what the gate has just published: an overlay does not look into `objects` a second time
    gate/nowhere     an error for every name: overlayfs caches the answer of its last layer, but not an error

Every overlay whose files may be missing has these four. One that records which files are used has `gate/record-N` in place of the
first two, so that every file is looked up in the gate. An overlay that an earlier version mounted keeps its layers, so the names that
are recognised here must not change.
"""

from __future__ import annotations

from pathlib import Path

from lazyfs.kernel.mountinfo import MountInfo
from lazyfs.store.folders import ARRIVED, GATE, GATE_NOWHERE, GATE_OBJECTS, OBJECTS, gate_record


def data_layers(store: Path, *, record: int | None = None) -> tuple[Path, ...]:
    """The data layers of an overlay of `store`, in lookup order. `record`: the number of its recording, if it has one."""
    gate = store / GATE
    first = (store / OBJECTS, gate / GATE_OBJECTS) if record is None else (gate / gate_record(record),)
    return (*first, store / ARRIVED, gate / GATE_NOWHERE)


def objects_only(store: Path) -> tuple[Path, ...]:
    """The data layers of an overlay whose files are never opened: without the gate, it works when nothing serves the gate."""
    return (store / OBJECTS,)


def belongs_to(mount: MountInfo, store: Path) -> bool:
    """Whether `mount` is an overlay over the data layers of `store`, an absolute path without symbolic links."""
    return mount.kind == "overlay" and str(store / ARRIVED) in mount.values("datadir+")


def store_of(mount: MountInfo) -> Path | None:
    """The store whose data layers an overlay has. None if the mount table does not show it: a path too long for the kernel appears as a
    descriptor in /proc."""
    return next((path.parent for path in map(Path, mount.values("datadir+")) if path.name == ARRIVED), None)
