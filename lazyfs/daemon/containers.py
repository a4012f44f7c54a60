"""The folders of `lazyfs run`, one a container: its root file system, what it writes, its bundle.

    STORE/containers/NAME/        rootfs (a mount), upper, config.json
    STORE/containers/NAME.lock    locked while `lazyfs run`, or the runc that it started, lives

A folder is made after its lock is held, and removed before it is let go: one without a holder was left by a `lazyfs run` that was
killed, and `sweep` removes it. What lies in it was written by a container, so it is removed with care.
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
    """One of them, held."""

    path: Path
    """Its last part is fit for a container's name."""
    hold: int
    """The lock file's descriptor: a process that inherits it holds the folder as well."""


@contextmanager
def container_folder(store: Path) -> Iterator[ContainerFolder]:
    """A new folder, for as long as the context lasts.

    Raises LocalError. What is mounted in it must have been unmounted at the end: else it is left, for `sweep`.
    """
    # As the kernel's table will name it.
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
    """Remove the folders that nobody holds, `unmount`ing what is at their `rootfs` first; their names. Blocking.

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
    """The descriptor of a lock file that is locked and has its name still: a sweep may have removed it in between."""
    while True:
        lock = open_lock_file(path)
        if try_lock(lock) and os.fstat(lock).st_nlink:
            return lock
        os.close(lock)


def _unlock(lock: int) -> None:
    if lock >= 0:
        os.close(lock)
