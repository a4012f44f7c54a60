"""The mount points of layers' EROFS images, STORE/layers/NAME (NAME is that of the image file), shared by all overlays.

An overlay keeps the mounts that it was stacked on even after they are unmounted. The mount points exist so that the next overlay of a
layer shares its inodes and its page cache. The kernel's mount table is read at each call, nothing is remembered: the mounts of a process
that was killed are used by the next one.

An image file is mounted directly where the kernel can (Linux 6.12, and not on tmpfs or overlayfs), else through a loop device that
disappears with the mount. Which of them works is found by trying.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from lazyfs.kernel.loop import loop_device
from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.mounting import MAX_STRING, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY, Context, attach, unmount

_MOUNT_FLAGS: Final = READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC
"""For the mount points. Only overlays use them, and those have mount attributes of their own."""


def mount_points(store: Path) -> Path:
    """The folder of a store's layer mounts."""
    return store / "layers"


class LayerRoots(NamedTuple):
    """Mount points of EROFS images. `new`: some of them were not mounted before."""

    roots: tuple[Path, ...]
    new: bool


class LayerMounts:
    """The layer mounts of one store. Thread-safe.

    A caller that stacks an overlay on the result of `mounted` holds `lock` until the overlay exists: unused layers may be unmounted.
    """

    def __init__(self, store: Path) -> None:
        self.lock = threading.RLock()
        self._held: dict[object, tuple[Path, ...]] = {}
        # Without symbolic links, as in the mount table.
        self._directory = mount_points(store.resolve())

    def mounted(self, images: Sequence[Path]) -> LayerRoots:
        """Mount those of `images` that are not mounted; returns all mount points. Blocking. Raises OSError; what was mounted stays."""
        with self.lock:
            return self._mounted(images)

    def hold(self, owner: object, roots: tuple[Path, ...]) -> None:
        """Keep `roots` mounted until `release`, for an `owner` that reads them without an overlay."""
        with self.lock:
            self._held[owner] = roots

    def release(self, owner: object) -> None:
        """End `hold`. Does nothing if `owner` holds nothing."""
        with self.lock:
            self._held.pop(owner, None)

    def _mounted(self, images: Sequence[Path]) -> LayerRoots:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        kinds = {mount.path: mount.kind for mount in mounts()}
        roots, new = [], False
        for image in images:
            root = self._directory / image.name
            # Never use another kind of mount there: its files would be others, or none.
            if kinds.get(root) != "erofs":
                _mount(image, root)
                new = True
                kinds[root] = "erofs"
            roots.append(root)
        if not roots:  # an image may have no layers, but an overlay needs one
            roots.append(self._directory / "none")
            roots[0].mkdir(mode=0o755, exist_ok=True)
        return LayerRoots(tuple(roots), new)

    def unmount_unused(self) -> None:
        """Unmount the images that no overlay in the mount table is stacked on. Busy ones stay. Blocking."""
        with self.lock:
            there = mounts()
            used = {value for mount in there if mount.kind == "overlay" for value in mount.values("lowerdir+")}
            used |= {str(root) for roots in self._held.values() for root in roots}
            for mount in reversed(there):
                if mount.kind == "erofs" and mount.path.parent == self._directory and str(mount.path) not in used:
                    with suppress(OSError):
                        unmount(mount.path)
                        mount.path.rmdir()


def mount_image(image: Path, *, through_loop: bool = False) -> int:
    """A descriptor of an EROFS image's mount, not yet attached (kernel/mounting.py). Raises OSError."""
    with ExitStack() as stack:
        file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
        context = stack.enter_context(Context("erofs"))
        source = loop_device(file, os.fsencode(image.name)) if through_loop else fsconfig_path(image)
        context.set("source", stack.enter_context(source))
        context.set("ro")
        context.create()
        return context.mount(_MOUNT_FLAGS)


@contextmanager
def fsconfig_path(path: Path) -> Iterator[str]:
    """A path to a file or directory, valid inside the block, that fsconfig accepts as the value of any option.

    fsconfig refuses long values, and some options treat a backslash as an escape. Raises OSError.
    """
    name = str(path)
    if len(os.fsencode(name)) <= MAX_STRING and "\\" not in name:
        yield name
        return
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _mount(image: Path, root: Path) -> None:
    root.mkdir(mode=0o700, exist_ok=True)
    try:
        fd = mount_image(image)
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
        fd = mount_image(image, through_loop=True)
    try:
        attach(fd, root)
    finally:
        os.close(fd)
