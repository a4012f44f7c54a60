"""Makes and removes the overlays of lazyfsd's mounts.

Blocking: for threads. Overlays share the mounts of their layers, so one is made at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lazyfs.daemon.state import Row
from lazyfs.errors import InvalidToc, MountFailed, NotNative
from lazyfs.image.layer import Layer
from lazyfs.mount.table import LazyfsMount, find_mount, holders, our_mounts
from lazyfs.native.data_layers import data_layers, objects_only
from lazyfs.native.layers import LayerMounts
from lazyfs.native.metadata import LayerMetadata, ensure_metadata
from lazyfs.native.probe import ProbeResult, probe
from lazyfs.native.stack import mount_stack, open_stack, source_of, unmount_stack


class Overlays:
    """The overlays of one store."""

    def __init__(self, store: Path, layers: LayerMounts) -> None:
        self._store = store
        self._layers = layers

    def mounted(self) -> list[LazyfsMount]:
        """All mounts of lazyfs in this mount namespace, including those of other stores. Raises OSError."""
        return our_mounts()

    def find(self, directory: Path) -> LazyfsMount | None:
        """The mount of lazyfs at `directory`, the topmost one. Raises OSError."""
        return find_mount(directory)

    def probe(self) -> ProbeResult:
        """Whether this machine can mount natively. Some ms."""
        return probe(self._store)

    def metadata(self, layers: Sequence[Layer]) -> tuple[Path, ...]:
        """The EROFS images of a stack, the lowest first; missing ones are built. Raises LazyfsError."""
        try:
            return ensure_metadata(
                self._store, [LayerMetadata(layer.toc_digest, layer.toc_offset, dialect=layer.dialect.name) for layer in layers]
            )
        except InvalidToc as error:
            # The TOC is valid, but EROFS or overlayfs cannot represent it.
            raise NotNative(
                f"this image cannot be mounted natively: {error.message}", hint="`lazyfs mount --mode portable` can"
            ) from error

    def make(self, row: Row, images: tuple[Path, ...]) -> bool:
        """Mount the image of `row`, from the EROFS images of its layers, the lowest first; returns whether some were not mounted before.

        Raises MountFailed.
        """
        upper = Path(row.mount.upper) if row.mount.upper else None
        work = _work_of(upper) if upper else None
        try:
            if work:
                work.mkdir(mode=0o700, exist_ok=True)
            with self._layers.lock:
                layers = self._layers.mounted(images)
                stack = open_stack(
                    layers.roots,
                    data_layers(self._store, record=row.number if row.mount.record else None),
                    source=source_of(row.mount.image),
                    upper=upper,
                    work=work,
                    read_only=upper is None,
                    volatile=row.mount.volatile,
                )
                mount_stack(Path(row.mount.directory), stack)
        except OSError as error:
            raise MountFailed(f"cannot mount at {row.mount.directory}: {error}") from error
        return layers.new

    def open_metadata(self, images: tuple[Path, ...]) -> int:
        """A descriptor of a detached overlay of the same layers, for the inode warm-up. Its files have no data."""
        with self._layers.lock:
            roots = self._layers.mounted(images).roots
            return open_stack(roots, objects_only(self._store), source=source_of("names"), read_only=True)

    def unmount(self, directory: Path, *, lazy: bool) -> None:
        """Unmount. Raises MountFailed; the message names the processes that use it."""
        try:
            unmount_stack(directory, lazy=lazy)
        except OSError as error:
            mounted = find_mount(directory)
            busy = holders(mounted) if mounted else []
            by = f"it is busy: held by {', '.join(busy[:10])}" if busy else error.strerror
            raise MountFailed(
                f"cannot unmount {directory}: {by}", hint="Stop those processes, or detach it with --lazy"
            ) from error

    def clean_up(self, row: Row) -> None:
        """Remove the work directory of an unmounted overlay: overlayfs leaves a folder without permissions in it."""
        if row.mount.upper:
            shutil.rmtree(_work_of(Path(row.mount.upper)), ignore_errors=True)

    def unmount_unused_layers(self) -> None:
        """Unmount the EROFS images that no overlay is stacked on any more."""
        self._layers.unmount_unused()


def _work_of(upper: Path) -> Path:
    """The work directory: beside the upper directory, because it must be on the same file system, and not inside."""
    return upper.with_name(f".{upper.name}.lazyfs-work")
