"""The store's directory: its layout, the processes that use it, and what a crash left.

On disk:

    DIR/index.sqlite      which chunks are in the store (index.py)
    DIR/objects/NAME      complete files, 0444, never rewritten in place
    DIR/arrived/NAME      a second name of each of them, for native mounts (files.py)
    DIR/partial/NAME      unfinished files, sparse; blob-HEX: blobs that are fetched whole (partial_blobs.py)
    DIR/documents/HEX     manifests, configs, TOCs by sha256
    DIR/notes/HEX         small facts that only save a round trip (notes.py)
    DIR/logs/             warnings of portable mounts (lazyfs/mount/logs.py)
    DIR/tmp/PID-RANDOM/   one per process; its file `lock` is locked while the process lives
    DIR/users             locked shared by every process that has the store open, exclusively to clear or migrate
    DIR/claims            which process fetches what (claims.py)
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lazyfs.errors import StoreUnusable
from lazyfs.kernel.mountinfo import mounts
from lazyfs.store.claims import Claims
from lazyfs.store.folders import ARRIVED, GATE, OBJECTS
from lazyfs.store.locks import lock, open_lock_file, try_lock
from lazyfs.store.store_error import store_error
from lazyfs.store.temporary import TemporaryFolder

INDEX_FILES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "index.sqlite-journal")
FOLDERS = (OBJECTS, ARRIVED, "partial", "documents", "notes", "logs", "tmp")

_LOCK_FILES = frozenset({"users", "claims"})
_BEFORE_US = frozenset({"lost+found", "logs", "lazyfsd.lock", "lazyfsd.sock", GATE, "init", "containers"})
"""May exist before the store: lazyfsd first takes its lock, its socket and its FUSE connection, and `lazyfs run` its directory.
"""
TRIAL_PREFIX = ".probe-"
"""Prefix of a trial mount's directory (lazyfs/native/probe.py). The trial may run before there is a store, or while one is
being created.
"""


class Directory:
    """The directory as one process uses it: its locks, and a directory for its temporary files."""

    def __init__(self, path: Path) -> None:
        """Create what is missing, register as a user, and remove what dead processes left. Raises StoreUnusable, StoreFull."""
        self.path = path
        self.objects = f"{path}/{OBJECTS}/"
        self.arrived = f"{path}/{ARRIVED}/"
        self.partial = f"{path}/partial/"
        self.documents = f"{path}/documents/"
        self.notes = f"{path}/notes/"
        with ExitStack() as undo:
            try:
                adopt(path)
                self._users = open_lock_file(f"{path}/users")
                undo.callback(os.close, self._users)
                lock(self._users, f"the store {path}", shared=True)
                self.claims = Claims(path / "claims")
                undo.callback(self.claims.close)
                with self.claims.opening():
                    for folder in FOLDERS:
                        (path / folder).mkdir(mode=0o700, exist_ok=True)
                    self._sweep()
                    self._temporary = TemporaryFolder(path / "tmp")
                    self.temporary = self._temporary.path
                    undo.callback(shutil.rmtree, self.temporary, ignore_errors=True)
                    self._alive = open_lock_file(f"{self.temporary}/lock")
                    try_lock(self._alive)
            except OSError as error:
                raise store_error(error, f"the store {path} cannot be opened") from error
            undo.pop_all()

    def new_temporary(self) -> str:
        """A path for a temporary file in this process's directory, on the same file system as the store."""
        return self._temporary.new()

    def others(self) -> list[Path]:
        """The directories in tmp/ of all other living processes that have the store open."""
        return [folder for folder in (self.path / "tmp").iterdir() if str(folder) != self.temporary and _is_alive(folder)]

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Yield whether no other process has the store open. While True, none can open it."""
        exclusive = try_lock(self._users)
        try:
            yield exclusive
        finally:
            if exclusive:
                try_lock(self._users, shared=True)

    def wipe(self) -> int:
        """Remove every object and partial file: without an index, their contents are unknown. Returns how many there were."""
        removed = sum(_empty(Path(folder)) for folder in (self.objects, self.partial))
        _empty(Path(self.arrived))
        return removed

    def close(self) -> None:
        """Unregister, and remove this process's files in tmp/."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        os.close(self._alive)
        self.claims.close()
        os.close(self._users)

    def _sweep(self) -> None:
        # The opening lock is held, so no process is between creating its directory and locking it: an unlocked one has no
        # owner.
        for folder in (self.path / "tmp").iterdir():
            if folder.is_dir():
                if not _is_alive(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            else:
                folder.unlink(missing_ok=True)


def clear(directory: Path) -> None:
    """Empty the store. Raises StoreUnusable, and removes nothing, if it is in use or `directory` is not a store."""
    if not directory.exists():
        return
    if not _is_store(directory):
        raise StoreUnusable(f"{directory} is not a store", hint="Nothing was removed.")
    try:
        users = open_lock_file(f"{directory}/users")
        try:
            if not try_lock(users):
                pids = [folder.name.partition("-")[0] for folder in (directory / "tmp").glob("*-*") if _is_alive(folder)]
                by = f" by process {', '.join(sorted(pids))}" if pids else ""
                raise StoreUnusable(f"the store {directory} is in use{by}", hint="Unmount what is mounted from it first.")
            # A native mount outlives lazyfsd, and its layers are mounted in here.
            inside = next((mount.path for mount in mounts() if mount.path.is_relative_to(directory.resolve())), None)
            if inside is not None:
                raise StoreUnusable(
                    f"the store {directory} is in use by the mount at {inside}", hint="`lazyfs status` names its user."
                )
            for name in INDEX_FILES:
                (directory / name).unlink(missing_ok=True)
            for name in (*FOLDERS, "erofs"):
                if (directory / name).is_dir():
                    _empty(directory / name)
        finally:
            os.close(users)
    except OSError as error:
        raise store_error(error, f"the store {directory} cannot be cleared") from error


def adopt(path: Path) -> None:
    """Create the directory, or check that it belongs to this user and holds only a store. Raises StoreUnusable if not, and
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    owner = path.stat()
    if owner.st_uid != os.geteuid():
        # The owner of the directory controls the index, and with it which bytes are trusted.
        raise StoreUnusable(
            f"the store {path} belongs to user id {owner.st_uid}, not {os.geteuid()}", hint="Name another directory with --store."
        )
    if not _is_store(path):
        raise StoreUnusable(f"{path} holds other files and is not a store", hint="Name an empty or new directory with --store.")
    if stat.S_IMODE(owner.st_mode) != 0o700:
        path.chmod(0o700)


def _is_store(path: Path) -> bool:
    """Whether lazyfs may write to it and empty it: a store, one whose creation did not finish, or an empty directory."""
    names = {entry.name for entry in os.scandir(path) if not entry.name.startswith(TRIAL_PREFIX)} - _BEFORE_US
    return names >= _LOCK_FILES or names <= _LOCK_FILES


def _is_alive(folder: Path) -> bool:
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def _empty(folder: Path) -> int:
    count = 0
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)
        count += 1
    return count
