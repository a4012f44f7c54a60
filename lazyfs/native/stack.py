"""One overlay: the EROFS images of an image's layers, and below them the data-only layers that hold the files' bytes.

    metadata of the uppermost layer      what is stat'ed, listed, resolved: in the kernel only
    ...
    metadata of the lowest layer
    data layers (data_layers.py)         data-only, found by name when a file is first opened

Options, and why:
- metacopy, redirect_dir: the metadata's inodes name their bytes by redirects; and a directory of the image can be renamed in a
  writable upper.
- index, nfs_export off: whatever the distribution has made the default, the first would tie an upper to these very images.
- xino off, whatever the kernel's default: each layer's files have a st_dev of their own, and directories the overlay's. On, there is one
  st_dev, but inode numbers above 2^62, and for a 32-bit program that was built without 64-bit file offsets lstat and readdir then
  fail (EOVERFLOW). Off, find -xdev, rsync -x, cp -x and tar --one-file-system do what they do elsewhere (only directories are asked
  for their file system); du -x leaves out files, os.path.ismount takes a file for a mount point, and the first change of a file
  changes its st_dev and inode number. Failing programs weigh more. lazyfs/docs/SEMANTICS.md says so.
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
"""How the source of an overlay of ours begins in the kernel's table; the image's name follows."""


SNAPSHOT_PREFIX: Final = "lazyfs-snapshot:"
"""How that of a root begins that containerd was given; the snapshot's key follows."""


def source_of(image: str) -> str:
    """The source of an overlay of the image of that name, cut where it is longer than the kernel takes."""
    return _cut(SOURCE_PREFIX + image)


def snapshot_source(key: str) -> str:
    """The source of the root of a snapshot, cut alike."""
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
    """A descriptor of the overlay of `layers`, lowest first, over the data layers `data`, first looked into first. Blocking.

    It has no place yet (kernel/mounting.py). `layers` are roots of EROFS images, `source` comes from `source_of`. With `upper` it is
    writable: changes go there, and `work` is an empty directory beside it (the same file system, and not inside). Raises OSError.
    """
    with ExitStack() as stack:
        overlay = stack.enter_context(Context("overlay"))
        overlay.set("source", source)
        # A layer twice: the upper one shows, adds and hides all that the lower one does. Overlayfs refuses a directory named twice.
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
    """Give what `open_stack` gave its place at the directory `at`, and close the descriptor. Raises OSError; nothing is mounted then."""
    try:
        attach(stack, at)
    finally:
        os.close(stack)


def unmount_stack(at: Path, *, lazy: bool = False) -> None:
    """Unmount our overlay at `at`; `lazy` detaches a busy one. Blocking. Raises OSError: EBUSY; EINVAL, it is none of ours."""
    _ours(at)
    mounting.unmount(at, lazy=lazy)


def reconfigure(at: Path) -> None:
    """Have our overlay at `at` forget the files that nobody holds: the next open looks anew where their bytes are. Blocking.

    Raises OSError: EINVAL, it is none of ours (any more), or is hidden under another mount.
    """
    mounting.reconfigure(at, read_only="ro" in _ours(at).options)


def _ours(at: Path) -> MountInfo:
    mount = mounted_at(at)
    if mount is None or mount.kind != "overlay" or not mount.source.startswith((SOURCE_PREFIX, SNAPSHOT_PREFIX)):
        raise OSError(errno.EINVAL, "it is not a native lazyfs mount", str(at))
    return mount
