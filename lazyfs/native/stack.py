"""The overlay of a native mount: the EROFS images of the layers, and below them the data-only layers that hold the files' data.

    metadata of the uppermost layer      stat, readdir and lookups are answered here, in the kernel
    ...
    metadata of the lowest layer
    data layers (data_layers.py)         data-only: a file's data is looked up by name at its first open

Options, and why:
- metacopy, redirect_dir: the inodes of the metadata name their data by redirects; and directories of the image can be renamed in a
  writable upper.
- index, nfs_export off, whatever the distribution's default: index would tie an upper to these very images.
- xino off, whatever the kernel's default: each layer's files have their own st_dev, and directories that of the overlay. With xino there
  is one st_dev, but inode numbers exceed 2^62, and lstat and readdir fail with EOVERFLOW in a 32-bit program built without 64-bit file
  offsets. Without it, find -xdev, rsync -x, cp -x and tar --one-file-system work as elsewhere (they compare only directories); du -x
  leaves out files, os.path.ismount takes a file for a mount point, and the first change of a file changes its st_dev and inode number.
  Failing programs weigh more. lazyfs/docs/SEMANTICS.md documents it.
- volatile, for an upper that is thrown away: nothing is synced, and the kernel refuses to mount the upper again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from lazyfs.kernel import mounting
from lazyfs.kernel.mountinfo import MountInfo, mounted_at
from lazyfs.kernel.mounting import MAX_STRING, READ_ONLY, Context, attach
from lazyfs.native.layers import fsconfig_path

SOURCE_PREFIX: Final = "lazyfs:"
"""Prefix of the source of a native mount in the mount table; the image's name follows."""


SNAPSHOT_PREFIX: Final = "lazyfs-snapshot:"
"""Prefix of the source of a root that lazyfsd mounts for containerd; the snapshot's key follows."""


def source_of(image: str) -> str:
    """The source of an overlay of the image of that name, cut to what the kernel accepts."""
    return _cut(SOURCE_PREFIX + image)


def snapshot_source(key: str) -> str:
    """The source of the root of a snapshot, cut to what the kernel accepts."""
    return _cut(SNAPSHOT_PREFIX + key)


def _cut(source: str) -> str:
    encoded = os.fsencode(source)
    return os.fsdecode(encoded if len(encoded) <= MAX_STRING else encoded[: MAX_STRING - 3] + b"...")


def open_stack(
    layers: Sequence[Path],
    data: Sequence[Path],
    *,
    source: str,
    upper: Path | None = None,
    work: Path | None = None,
    read_only: bool = False,
    volatile: bool = False,
) -> int:
    """A descriptor of the overlay of `layers`, lowest first, over the data layers `data`, in lookup order. Blocking.

    It is not attached yet (kernel/mounting.py). `layers` are roots of EROFS images, `source` comes from `source_of`. With `upper` the
    overlay is writable: changes go there, and `work` is an empty directory on the same file system, not inside `upper`. Raises OSError.
    """
    with ExitStack() as stack:
        overlay = stack.enter_context(Context("overlay"))
        overlay.set("source", source)
        # A layer that occurs twice: the upper one hides the lower one completely, and overlayfs refuses a directory named twice.
        for layer in dict.fromkeys(reversed(layers)):
            overlay.set("lowerdir+", stack.enter_context(fsconfig_path(layer)))
        for directory in data:
            overlay.set("datadir+", stack.enter_context(fsconfig_path(directory)))
        for option in ("metacopy", "redirect_dir"):
            overlay.set(option, "on")
        for option in ("xino", "index", "nfs_export"):
            overlay.set(option, "off")
        if upper is not None and work is not None:
            overlay.set("upperdir", stack.enter_context(fsconfig_path(upper)))
            overlay.set("workdir", stack.enter_context(fsconfig_path(work)))
            if volatile:
                overlay.set("volatile")
        overlay.create()
        return overlay.mount(READ_ONLY if read_only else 0)


def mount_stack(at: Path, stack: int) -> None:
    """Attach a descriptor from `open_stack` at the directory `at`, and close it. Raises OSError; nothing is mounted then."""
    try:
        attach(stack, at)
    finally:
        os.close(stack)


def unmount_stack(at: Path, *, lazy: bool = False) -> None:
    """Unmount the overlay at `at`; `lazy` detaches a busy one. Blocking. Raises OSError: EBUSY; EINVAL if it is not a lazyfs overlay."""
    _ours(at)
    mounting.unmount(at, lazy=lazy)


def reconfigure(at: Path) -> None:
    """Make the overlay at `at` drop its unused dentries: the next open looks up the file's data again. Blocking.

    Raises OSError: EINVAL if it is not a lazyfs overlay (any more), or is hidden under another mount.
    """
    mounting.reconfigure(at, read_only="ro" in _ours(at).options)


def _ours(at: Path) -> MountInfo:
    mount = mounted_at(at)
    if mount is None or mount.kind != "overlay" or not mount.source.startswith((SOURCE_PREFIX, SNAPSHOT_PREFIX)):
        raise OSError(errno.EINVAL, "it is not a native lazyfs mount", str(at))
    return mount
