"""Root file systems to compare: an image mounted natively, and a full pull of it on overlayfs. What was begun here ends here."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.container import root_of
from bench.place import Place
from lazyfs.daemon.holding import SOCKET_NAME
from tests.containerd import Containerd

PATIENCE_S = 30


@contextmanager
def lazy_root(place: Place, image: str, *options: str | Path) -> Iterator[Path]:
    """A new bundle with the image mounted natively and writable at its `rootfs`, over the place's store; its lazyfsd ends behind it."""
    try:
        with another_root(place, image, *options) as bundle:
            yield bundle
    finally:
        stop_daemon(place.lazyfs.store)


@contextmanager
def another_root(place: Place, image: str, *options: str | Path) -> Iterator[Path]:
    """As `lazy_root`, beside others: their lazyfsd goes on."""
    bundle = place.new_folder()
    root = root_of(bundle)
    store = place.lazyfs.store
    try:
        place.lazyfs.run("mount", image, root, "--mode", "native", "--rw", bundle / "upper", "--store", store, *options)
        yield bundle
    finally:
        if root.is_mount():
            place.lazyfs.run("umount", "--lazy", root, "--store", store, code=None)


@contextmanager
def pulled_root(place: Place, containerd: Containerd, pulled: str, namespace: str = "default") -> Iterator[Path]:
    """A new bundle with a snapshot of a pulled image mounted writable at its `rootfs`, as containerd mounts it for a container."""
    bundle = place.new_folder()
    root = root_of(bundle)
    try:
        containerd.ctr("--namespace", namespace, "images", "mount", "--rw", "--snapshotter", "overlayfs", pulled, str(root))
        yield bundle
    finally:
        containerd.ctr("--namespace", namespace, "images", "unmount", "--snapshotter", "overlayfs", str(root), code=None)


def stop_daemon(store: Path) -> None:
    """Have the lazyfsd of `store` end, where one runs, and wait for that. TimeoutError: it does not."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(store / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        # Who listens is its keeper.
        keeper, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with suppress(ProcessLookupError):
        ended = os.pidfd_open(keeper)
        try:
            signal.pidfd_send_signal(ended, signal.SIGTERM)
            if not select.select([ended], [], [], PATIENCE_S)[0]:
                raise TimeoutError(f"lazyfsd ({keeper}) does not end")
        finally:
            os.close(ended)


def drop_caches() -> None:
    """Page cache, dentries and inodes of everything; what is dirty is written first, because it could not be dropped."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
