"""What containerd is told to mount: pure values, and where a snapshot's directories are.

Stacks without a lazy layer are told word for word as containerd's own overlayfs snapshotter tells them (plugins/snapshots/overlay):
whoever reads them out of a mount's options, as the unpacker and the differ do, finds what it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lazyfs.snapshots.snapshot import Snapshot


class MountSpec(NamedTuple):
    """One mount, in containerd's words."""

    type: str
    source: str
    options: tuple[str, ...]


class SnapshotFolders(NamedTuple):
    """The folder of one containerd's snapshots; each has one of its own, named by its number."""

    folder: Path

    @classmethod
    def of_containerd(cls, folder: Path) -> SnapshotFolders:
        """In the folder that belongs to one containerd, STORE/containerd/NAME."""
        return cls(folder / "snapshots")

    def of(self, number: int) -> Path:
        """All that belongs to a snapshot."""
        return self.folder / str(number)

    def fs(self, number: int) -> Path:
        """The files of an unpacked layer, or what a container has changed."""
        return self.of(number) / "fs"

    def work(self, number: int) -> Path:
        """Where overlayfs works, of an active one."""
        return self.of(number) / "work"

    def root(self, number: int) -> Path:
        """Where we mount the overlay of a stack that has lazy layers."""
        return self.of(number) / "root"


def bind(source: Path, *, read_only: bool) -> tuple[MountSpec, ...]:
    """A directory as it is."""
    return (MountSpec("bind", str(source), ("ro" if read_only else "rw", "rbind")),)


def overlay_mounts(
    snapshot: Snapshot, folders: SnapshotFolders, lower: Sequence[Path], *, index_off: bool
) -> tuple[MountSpec, ...]:
    """The mounts of a snapshot on the directories `lower`, the lowest first. `index_off`: overlayfs here knows that option."""
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
