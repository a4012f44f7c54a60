"""The folders of `lazyfs run`, one a container: its root file system, its changes, its bundle.

    STORE/containers/NAME/        rootfs (a mount), upper, config.json
    STORE/containers/NAME.lock    locked while `lazyfs run`, or the runc that it started, is running

A folder is created after its lock is taken, and removed before the lock is released. A folder without a lock holder was left by a killed
`lazyfs run`, and `sweep` removes it. A container has written what is in it, so it is removed with care.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from lazyfs.errors import LocalError
from lazyfs.kernel.removal import remove_tree
from lazyfs.store.locks import open_lock_file, try_lock

FOLDER: Final = "containers"
_NAME: Final = re.compile(r"lazyfs-[0-9a-f]{12}")
_LOCK: Final = ".lock"


class ContainerFolder(NamedTuple):
    """A locked folder."""

    path: Path
    """Its last component is used as the container's name."""
    hold: int
    """The descriptor of the lock file: a process that inherits it keeps the folder locked."""


@contextmanager
def container_folder(store: Path) -> Iterator[ContainerFolder]:
    """A new folder, removed at the end of the block. Raises LocalError.

    Mounts in it must be unmounted by then: otherwise it is left for `sweep`.
    """
    # The path that the mount table will have.
    folder = Path(os.path.realpath(store / FOLDER), f"lazyfs-{os.urandom(6).hex()}")
    lock = -1
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        lock = _lock(f"{folder}{_LOCK}")
        folder.mkdir(mode=0o700)
    except OSError as error:
        _unlock(lock)
        raise LocalError(f"cannot make {folder}: {error.strerror}") from error
    try:
        yield ContainerFolder(folder, lock)
    finally:
        try:
            with suppress(OSError):
                remove_tree(folder)
                os.unlink(f"{folder}{_LOCK}")
        finally:
            _unlock(lock)


def sweep(store: Path, unmount: Callable[[Path], None]) -> list[str]:
    """Remove the folders that are not locked, after `unmount` of their `rootfs`; returns their names. Blocking.

    An OSError of `unmount`, or of the removal, leaves the folder to the next sweep.
    """
    swept = []
    folders = Path(os.path.realpath(store / FOLDER))
    try:
        found = {name.removesuffix(_LOCK) for name in os.listdir(folders)}
    except FileNotFoundError:
        return []
    for name in sorted(name for name in found if _NAME.fullmatch(name)):
        folder = folders / name
        lock = open_lock_file(f"{folder}{_LOCK}")
        try:
            if try_lock(lock):
                with suppress(OSError):
                    unmount(folder / "rootfs")
                    remove_tree(folder)
                    os.unlink(f"{folder}{_LOCK}")
                    swept.append(name)
        finally:
            os.close(lock)
    return swept


def _lock(path: str) -> int:
    """The descriptor of a locked lock file that still has its name: a sweep may remove it in between."""
    while True:
        lock = open_lock_file(path)
        if try_lock(lock) and os.fstat(lock).st_nlink:
            return lock
        os.close(lock)


def _unlock(lock: int) -> None:
    if lock >= 0:
        os.close(lock)
