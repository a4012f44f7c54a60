"""The mounts that containerd gets for a snapshot, as pure values, and the folders of snapshots.

For stacks without a lazy layer they are exactly those of containerd's overlayfs snapshotter (plugins/snapshots/overlay): clients that parse
the options of a mount, as the unpacker and the differ do, find what they expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lazyfs.snapshots.snapshot import Snapshot


class MountSpec(NamedTuple):
    """One mount, as in containerd's API."""

    type: str
    source: str
    options: tuple[str, ...]


class SnapshotFolders(NamedTuple):
    """The folders of one containerd's snapshots, named by their numbers."""

    folder: Path

    @classmethod
    def of_containerd(cls, folder: Path) -> SnapshotFolders:
        """`folder` is that of one containerd, STORE/containerd/NAME."""
        return cls(folder / "snapshots")

    def of(self, number: int) -> Path:
        """The folder of a snapshot."""
        return self.folder / str(number)

    def fs(self, number: int) -> Path:
        """The files of an unpacked layer, or the changes of a container."""
        return self.of(number) / "fs"

    def work(self, number: int) -> Path:
        """The work directory of overlayfs, for an active snapshot."""
        return self.of(number) / "work"

    def root(self, number: int) -> Path:
        """Where lazyfsd mounts the overlay of a stack with lazy layers."""
        return self.of(number) / "root"


def bind(source: Path, *, read_only: bool) -> tuple[MountSpec, ...]:
    """A bind mount of a directory."""
    return (MountSpec("bind", str(source), ("ro" if read_only else "rw", "rbind")),)


def overlay_mounts(
    snapshot: Snapshot, folders: SnapshotFolders, lower: Sequence[Path], *, index_off: bool
) -> tuple[MountSpec, ...]:
    """The mounts of a snapshot on the directories `lower`, the lowest first. `index_off`: this kernel's overlayfs has that option."""
    read_only = snapshot.kind == "view"
    if not lower:
        return bind(folders.fs(snapshot.id), read_only=read_only)
    if read_only and len(lower) == 1:
        return bind(lower[0], read_only=True)
    options = ["index=off"] if index_off else []
    if not read_only:
        options += [f"workdir={folders.work(snapshot.id)}", f"upperdir={folders.fs(snapshot.id)}"]
    options.append("lowerdir=" + ":".join(map(str, reversed(lower))))
    return (MountSpec("overlay", "overlay", tuple(options)),)
