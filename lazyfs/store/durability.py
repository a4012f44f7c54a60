"""Which parts of the store have reached the disk, and what happens to the rest after a power failure.

A rename is not durable. After a power failure, a file system may show a file under its final name with none of its bytes, or
with holes. Portable mounts check what they read; the kernel, which serves objects/ natively, checks nothing. Syncing each file
would cost more than fetching it. So every row of the index carries the generation in which it was committed. From time to time
the generation is raised, and then the whole file system is synced. The bytes and names of what was committed before were in
place before, so the ended generation is durable, and that is recorded.

The first process to open the store after a boot recovers it before anything can be mounted. Every chunk of each object that has
a row younger than the last durable generation is checked, and dropped if it is wrong. Files without a row leave objects/,
arrived/ and partial/. A process that dies without a power failure needs none of this: the kernel has its bytes.

After a power failure, rows are back in the order of their commits, up to some commit. So when a row is deleted and its file
created again, the deletion must be synced in between (damage.py, eviction.py).

Source for the data loss: kernel-level measurement on ext4 (50 of 50 renamed files empty after 8 seconds); syncfs(2).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from pathlib import Path

from lazyfs.errors import StoreUnusable
from lazyfs.kernel.boot import boot_id
from lazyfs.kernel.sync import syncfs
from lazyfs.store import schema
from lazyfs.store.blocks import read_checked
from lazyfs.store.content import is_single
from lazyfs.store.directory import Directory
from lazyfs.store.files import Files
from lazyfs.store.index import Index
from lazyfs.store.partial_blobs import is_partial_blob
from lazyfs.store.rows import Row
from lazyfs.store.store_error import store_error

_log = logging.getLogger("lazyfs.store")


class Durability:
    """Raises and syncs generations. Any thread may call it, and several processes may do so."""

    def __init__(self, directory: Directory, index: Index) -> None:
        self._directory = directory
        self._index = index
        self._failed = False
        self._syncing = threading.Lock()

    def is_pending(self) -> bool:
        """Whether committed rows may not be on disk yet. One query of 10 µs."""
        return bool(self._index.younger(1))

    def make_durable(self) -> None:
        """Sync everything that was kept, and record it. Does nothing if nothing is new. Takes as long as the disk does.

        Raises StoreFull, StoreUnusable: then nothing more is recorded as durable. A kill at any point has the same effect.
        """
        ended = 0

        def end(db: sqlite3.Connection) -> None:
            nonlocal ended
            if db.execute(schema.SELECT_YOUNGER, (1,)).fetchone():
                ended = schema.number(db, "generation")
                schema.note(db, "generation", ended + 1)

        def record(db: sqlite3.Connection) -> None:
            # The index may have been started over meanwhile.
            if schema.number(db, "generation") > ended > schema.number(db, "durable"):
                schema.note(db, "durable", ended)

        self._index.change(end)
        if not ended:
            return
        self.sync_all()
        self._index.change(record)

    def sync_all(self) -> None:
        """Sync the file system of the store, with the writes of all processes. Takes as long as the disk does.

        Raises StoreFull, StoreUnusable. After a failure, every further call fails.
        """
        with self._syncing:
            if self._failed:
                # The kernel reports a failed write once, and does not keep the data that it could not write.
                raise StoreUnusable(f"the disk of the store {self._directory.path} has failed", hint="See the kernel's log.")
            try:
                sync(self._directory.path)
            except OSError as error:
                self._failed = True
                raise store_error(error, f"the store {self._directory.path} cannot be synced") from error


def sync(path: Path) -> None:
    """Call syncfs on the file system of `path`. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def recover(directory: Directory, files: Files, index: Index) -> None:
    """Once per boot, check or drop what may not have reached the disk. Raises StoreUnusable, StoreFull.

    If the process is killed, the next one does it again.
    """
    boot = boot_id()
    if index.fact("boot") == boot:
        return
    with directory.claims.recovering():
        if index.fact("boot") != boot:
            try:
                dropped, removed = _Recovery(directory, files, index).run(boot)
            except OSError as error:
                raise store_error(error, f"the store {directory.path} cannot be recovered after a reboot") from error
            if dropped or removed:
                _log.warning(
                    "the store %s was not fully synced when the machine stopped: dropped %d chunks and %d files",
                    directory.path,
                    dropped,
                    removed,
                )


class _Recovery:
    """One pass over the store, while no other process uses it."""

    def __init__(self, directory: Directory, files: Files, index: Index) -> None:
        self._directory = directory
        self._files = files
        self._index = index
        self._wrong: list[Row] = []
        self._removed = 0

    def run(self, boot: str) -> tuple[int, int]:
        """Returns the numbers of dropped chunks and removed files."""
        self._index.change(_require_facts)
        names = set(self._index.names())
        objects, young = set(os.listdir(self._directory.objects)), set(self._index.younger(-1))
        lost = set()
        for name in names:
            if name in young or name not in objects:
                if not self._check(name, name in objects):
                    lost.add(name)
            elif not (is_single(name) or self._index.is_whole(name)):
                self._to_partial(name)
        self._remove_files(names - lost)

        def drop(db: sqlite3.Connection) -> None:
            db.executemany(schema.DELETE, [(row.object, row.position) for row in self._wrong])
            schema.note(db, "boot", boot)

        self._index.change(drop, synced=True, removing=[row.object for row in self._wrong])
        Durability(self._directory, self._index).make_durable()
        return len(self._wrong), self._removed

    def _check(self, name: str, whole: bool) -> bool:
        """Check every chunk of an object, because a new one may have led to a new file for the others. Returns whether any is
        right."""
        rows = self._index.rows_of(name)
        wrong, size = rows, sum(row.size for row in rows)
        fd = self._files.open(name)
        if fd is not None:
            try:
                fits = not whole or os.fstat(fd).st_size == size
                if fits or not is_single(name):
                    wrong = [row for row in rows if not is_right(fd, row)]
            finally:
                os.close(fd)
            if whole and not is_single(name) and (wrong or not fits or not self._index.is_whole(name)):
                self._to_partial(name)
        self._wrong += wrong
        return len(wrong) < len(rows)

    def _to_partial(self, name: str) -> None:
        """Turn it into an unfinished file. It is neither open nor mounted."""
        os.chmod(self._directory.objects + name, 0o600)
        os.rename(self._directory.objects + name, self._directory.partial + name)
        self._files.discard(self._directory.arrived + name)

    def _remove_files(self, names: set[str]) -> None:
        """Remove files without rows, and partial files whose object exists."""
        objects = {entry.name: entry.inode() for entry in os.scandir(self._directory.objects)}
        for name in objects.keys() - names:
            self._remove(self._directory.objects + name)
        for entry in list(os.scandir(self._directory.arrived)):
            if entry.name not in names or objects.get(entry.name) != entry.inode():
                self._remove(entry.path)
        for name in os.listdir(self._directory.partial):
            if (name not in names or name in objects) and not is_partial_blob(
                name
            ):  # the content of a partial blob is not trusted anyway
                self._remove(self._directory.partial + name)

    def _remove(self, path: str) -> None:
        if not os.path.isdir(path):  # a directory is not an object: somebody put it there
            os.unlink(path)
            self._removed += 1


def is_right(fd: int, row: Row) -> bool:
    """Whether the chunk in the file matches its row."""
    return read_checked(fd, row.offset, row.size, row.digest, row.sums, 0, 0) is not None


def _require_facts(db: sqlite3.Connection) -> None:
    """An index that does not record what is durable is damaged."""
    schema.number(db, "durable")
