"""Roots of containers and views: the overlays of stacks with lazy layers, which lazyfsd mounts and containerd only binds.

containerd cannot mount them itself: it knows no data-only layers. They are mounted when they are asked for and not there, after a
reboot as well, and taken away with their snapshot. What is mounted, the kernel's table says, never a memory of ours; only that
the gate behind a mount is dead (it was lost with an earlier process) is remembered here, and such a root is made anew.

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
    """Those of one containerd."""

    def __init__(self, store: Path, folders: SnapshotFolders, layers: LayerMounts) -> None:
        self._store = store
        self._folders = folders
        self._layers = layers
        # Of this one's roots: a second Mounts of the same snapshot waits for the first.
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
        """The gate behind all that is mounted now is dead. Blocking."""
        self._dead = self.mounted()

    def lower(self, number: int, images: Sequence[Path]) -> tuple[Path, ...]:
        """Directories of a stack's layers, the lowest first, for a snapshot that is unpacked into: `images` are EROFS images, which are
        mounted as long as it is active, and directories. Raises OSError."""
        with self._layers.lock:
            roots = self._lower(images)
            self._layers.hold(self._folders.of(number), roots)  # numbers alone are every containerd's
            return roots

    def ensure(self, snapshot: Snapshot, images: Sequence[Path]) -> Path:
        """Where the root of `snapshot` on a stack of `images` is mounted, which is done if it is not. Raises MountFailed."""
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
        """Unmount the root of a snapshot, if it is mounted; who still uses it keeps it until then."""
        with self._lock:
            self._unmount(number)
        self._layers.release(self._folders.of(number))
        self.unmount_unused_layers()

    def remove(self, number: int) -> None:
        """Unmount the root of a snapshot, and remove all that it had. What cannot be removed is logged, and left to the next Cleanup."""
        self.unmount(number)
        with self._lock:
            # Remove and Cleanup may come together, and two would fail over what the other has taken away.
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
        """Unmount the EROFS images that nothing is stacked on any more."""
        self._layers.unmount_unused()

    def directories(self) -> Iterable[int]:
        """The numbers of all snapshots that have a directory."""
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
"""Whether overlayfs knows the option `index`: containerd asks in the same way."""
