"""The roots of containers and views: overlays of stacks with lazy layers, which lazyfsd mounts and containerd bind-mounts.

containerd cannot mount them itself: its mounts have no data-only layers. A root is mounted when containerd asks for it and it is not mounted,
also after a reboot, and unmounted with its snapshot. The kernel's mount table says what is mounted. Only one thing is remembered here: which
roots have a dead gate, because it was lost with an earlier process. Such a root is mounted again.

Blocking: for threads.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lazyfs.containerd.mounts import SnapshotFolders
from lazyfs.errors import MountFailed
from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.mounting import unmount
from lazyfs.kernel.removal import remove_tree
from lazyfs.native.data_layers import data_layers
from lazyfs.native.layers import LayerMounts
from lazyfs.native.stack import mount_stack, open_stack, snapshot_source
from lazyfs.snapshots.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Roots:
    """The roots of one containerd."""

    def __init__(self, store: Path, folders: SnapshotFolders, layers: LayerMounts) -> None:
        self._store = store
        self._folders = folders
        self._layers = layers
        # A second Mounts of the same snapshot waits for the first.
        self._lock = threading.Lock()
        self._dead: set[int] = set()
        self._being_removed: set[int] = set()

    def mounted(self) -> set[int]:
        """The numbers of the snapshots whose root is mounted. Blocking."""
        found = set()
        for mount in mounts():
            if mount.path.name == "root" and mount.path.parent.parent == self._folders.folder and mount.kind == "overlay":
                with suppress(ValueError):
                    found.add(int(mount.path.parent.name))
        return found

    def mark_dead(self) -> None:
        """The gate of all roots that are mounted now is dead: they will be mounted again. Blocking."""
        self._dead = self.mounted()

    def lower(self, number: int, images: Sequence[Path]) -> tuple[Path, ...]:
        """Directories of a stack's layers, the lowest first, for an active snapshot that containerd unpacks into. `images` are EROFS images,
        which stay mounted while it is active, and directories. Raises OSError."""
        with self._layers.lock:
            roots = self._lower(images)
            self._layers.hold(self._folders.of(number), roots)  # the folder, because several containerds have the same numbers
            return roots

    def ensure(self, snapshot: Snapshot, images: Sequence[Path]) -> Path:
        """The mount point of the root of `snapshot` on a stack of `images`; mounts it if it is not mounted. Raises MountFailed."""
        at = self._folders.root(snapshot.id)
        with self._lock:
            if snapshot.id in self.mounted():
                if snapshot.id not in self._dead:
                    return at
                _log.warning("remounted the root of %s: the gate of the old mount was lost", snapshot.key)
                self._unmount(snapshot.id)
            try:
                self._mount(snapshot, images, at)
            except OSError as error:
                raise MountFailed(f"the root of {snapshot.key} cannot be mounted: {error}") from error
            self._dead.discard(snapshot.id)
        return at

    def unmount(self, number: int) -> None:
        """Unmount the root of a snapshot, if it is mounted; a root in use is detached."""
        with self._lock:
            self._unmount(number)
        self._layers.release(self._folders.of(number))
        self.unmount_unused_layers()

    def remove(self, number: int) -> None:
        """Unmount the root of a snapshot and remove its folder. A failure is logged; the next Cleanup tries again."""
        self.unmount(number)
        with self._lock:
            # Remove and Cleanup may run at the same time, and would fail on what the other has removed.
            if number in self._being_removed:
                return
            self._being_removed.add(number)
        try:
            remove_tree(self._folders.of(number))
        except OSError as error:
            _log.warning("cannot remove the rest of snapshot %d: %s", number, error)
        finally:
            with self._lock:
                self._being_removed.discard(number)

    def unmount_unused_layers(self) -> None:
        """Unmount the EROFS images that nothing is stacked on."""
        self._layers.unmount_unused()

    def directories(self) -> Iterable[int]:
        """The numbers of all snapshots with a folder."""
        with suppress(FileNotFoundError):
            return [int(name) for name in os.listdir(self._folders.folder) if name.isdecimal()]
        return []

    def _mount(self, snapshot: Snapshot, images: Sequence[Path], at: Path) -> None:
        at.mkdir(mode=0o700, exist_ok=True)
        active = snapshot.kind == "active"
        with self._layers.lock:
            stack = open_stack(
                self._lower(images),
                data_layers(self._store),
                source=snapshot_source(snapshot.key),
                upper=self._folders.fs(snapshot.id) if active else None,
                work=self._folders.work(snapshot.id) if active else None,
                read_only=not active,
            )
        mount_stack(at, stack)

    def _lower(self, images: Sequence[Path]) -> tuple[Path, ...]:
        metadata = [image for image in images if not image.is_dir()]
        at = dict(zip(metadata, self._layers.mounted(metadata).roots, strict=False))
        return tuple(at.get(image, image) for image in images)

    def _unmount(self, number: int) -> None:
        try:
            unmount(self._folders.root(number), lazy=True)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOENT}:  # not mounted
                _log.warning("cannot unmount the root of snapshot %d: %s", number, error)
        self._dead.discard(number)


INDEX_OFF: Final = os.path.exists("/sys/module/overlay/parameters/index")
"""Whether overlayfs has the option `index`, found as in containerd."""
