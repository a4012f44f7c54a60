"""Where the EROFS images of layers are mounted: STORE/layers/NAME, NAME that of the image's file, once for all overlays.

An overlay keeps what it was stacked on, mounted or not; the mount points are here so that the next overlay of the same
layer shares its inodes and its page cache. What is mounted is read from the kernel's table at each call, never
remembered: a process that was killed leaves its layers to the next one.

An image's file is mounted directly where the kernel can (Linux 6.12, and not on tmpfs or overlayfs), else through a loop
device, which goes with the mount. Which it is, is decided by trying.
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
"""Of the mount points, which nobody but the overlays has business with; those show the files under attributes of their own."""


def mount_points(store: Path) -> Path:
    """The folder of a store's mount points."""
    return store / "layers"


class LayerRoots(NamedTuple):
    """Roots of EROFS images, and whether the kernel had some of them not until now."""

    roots: tuple[Path, ...]
    new: bool


class LayerMounts:
    """The mount points of one store. Any thread may call it.

    Who stacks an overlay on what `mounted` tells holds `lock` until it is stacked: what nothing is stacked on may be unmounted.
    """

    def __init__(self, store: Path) -> None:
        self.lock = threading.RLock()
        self._held: dict[object, tuple[Path, ...]] = {}
        # Without symbolic links, as the kernel's table names what is mounted there.
        self._directory = mount_points(store.resolve())

    def mounted(self, images: Sequence[Path]) -> LayerRoots:
        """Where `images` are mounted; those that were not are mounted now. Blocking. Raises OSError; what has been mounted stays."""
        with self.lock:
            return self._mounted(images)

    def hold(self, owner: object, roots: tuple[Path, ...]) -> None:
        """Keep these mounted for somebody who reads them without an overlay, until `let_go`."""
        with self.lock:
            self._held[owner] = roots

    def let_go(self, owner: object) -> None:
        """Nothing, where it holds nothing."""
        with self.lock:
            self._held.pop(owner, None)

    def _mounted(self, images: Sequence[Path]) -> LayerRoots:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        kinds = {mount.path: mount.kind for mount in mounts()}
        roots, new = [], False
        for image in images:
            root = self._directory / image.name
            # Anything else in its place would be an image with other files, or with none.
            if kinds.get(root) != "erofs":
                _mount(image, root)
                new = True
                kinds[root] = "erofs"
            roots.append(root)
        if not roots:  # an image may have no layers, an overlay must
            roots.append(self._directory / "none")
            roots[0].mkdir(mode=0o755, exist_ok=True)
        return LayerRoots(tuple(roots), new)

    def unmount_unused(self) -> None:
        """Unmount the images that no overlay in the kernel's table is stacked on. What is busy stays. Blocking."""
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
    """A descriptor of an EROFS image's mount, which has no place yet (kernel/mounting.py). Raises OSError."""
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
    """A name for a file or directory, good inside the block, that fsconfig takes as the value of any option.

    It refuses long ones, and for some options a backslash would escape. Raises OSError.
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
