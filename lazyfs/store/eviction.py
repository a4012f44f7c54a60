"""Disk space: how much the store uses, and what is removed when that is too much.

Whole files are evicted, in this order: partial blobs of layers that nobody is fetching (partial_blobs.py), objects that no
mounted image uses, documents and EROFS images that no mount needs, and finally what is in use. Within each group, the oldest
arrivals go first, with a second chance: neither this process nor the access time shows that the kernel reads an object, but its
page cache does. So files with cached pages are spared until no others are left. Files that are being written are not removed,
nor names that were announced a moment ago (`protected`: overlayfs was sent to look for them).

A removal has two steps. First the rows are deleted, in a synced transaction (durability.py says why). Then, under the lock for
giving and removing names of objects, `protected` is asked again, and the names are removed. A caller that notes a name as
announced and then checks for the file finds either the file or nothing. If a name turns out to be protected, its rows are
restored.

The space of a removed file stays in use as long as the kernel holds it for a reader or an overlay's inode. It is counted as
used until its file handle is stale. A new process does not know what the kernel held before.

Only one process evicts at a time (claims.py), because it alone knows which names it has announced.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec

from lazyfs.kernel.handle import handle_of, is_there
from lazyfs.kernel.mountinfo import mounts
from lazyfs.kernel.page_cache import is_cached
from lazyfs.store import schema
from lazyfs.store.content import is_name
from lazyfs.store.directory import INDEX_FILES, Directory
from lazyfs.store.files import Files, FoundFile
from lazyfs.store.in_use import Either, InUse, declared
from lazyfs.store.index import Index
from lazyfs.store.open_files import OpenFiles
from lazyfs.store.partial_blobs import PartialBlobs

_log = logging.getLogger("lazyfs.store")

_BATCH = 256
_PAGE = 1000
_RECENT = 60.0
"""Seconds. A partial file that was written more recently, or a document that was kept more recently, stays."""
_STRAY_AGE = 3600.0


class Usage(msgspec.Struct, frozen=True):
    """Bytes on disk."""

    used: int
    """By everything in the store, including `held`."""
    held: int
    """By removed files that the kernel still holds for a reader or a mount."""
    limit: int
    """The limit for the whole store; 0: none."""


class Freed(msgspec.Struct, frozen=True):
    """What was removed."""

    objects: int = 0
    documents: int = 0
    """Manifests, configs, TOCs and EROFS images."""
    parts: int = 0
    """Partial blobs of layers that are fetched whole."""
    bytes: int = 0
    """Total on disk."""
    held: int = 0
    """Bytes that the kernel still held after the removal. They become free when their readers close the files."""
    names: tuple[str, ...] = ()
    """Names of the removed objects."""


class _Victim(NamedTuple):
    name: str
    found: FoundFile
    bytes: int


class _HeldFile(NamedTuple):
    """A removed file whose space the kernel may still hold."""

    name: str
    handle: bytes
    bytes: int


class _Removal:
    """One removal in progress."""

    def __init__(self, wanted: int | None, before: float | None) -> None:
        self.wanted = wanted
        self.before = before
        """Only files last modified before this time are removed."""
        self.names: list[str] = []
        self.documents = 0
        self.parts = 0
        self.bytes = 0
        self.held: list[_HeldFile] = []

    def is_enough(self, more: int = 0) -> bool:
        return self.wanted is not None and self.bytes + more >= self.wanted

    def spares(self, status: os.stat_result) -> bool:
        """Whether a file is too new to be removed."""
        return self.before is not None and status.st_mtime > self.before


class Eviction:
    """Measures disk space and evicts. Any thread may call it."""

    def __init__(
        self, directory: Directory, files: Files, index: Index, open_files: OpenFiles, partial_blobs: PartialBlobs
    ) -> None:
        self._directory = directory
        self._files = files
        self._index = index
        self._open = open_files
        self._partial_blobs = partial_blobs
        self._lock = threading.Lock()
        self._held: list[_HeldFile] = []

    @property
    def limit(self) -> int:
        """The limit of the store in bytes; 0: none. It is kept in the index and holds for all processes."""
        limit = self._index.fact("limit")
        return limit if isinstance(limit, int) else 0

    def set_limit(self, limit: int) -> None:
        """Set the limit for all processes. Raises StoreFull, StoreUnusable."""
        self._index.change(lambda db: schema.note(db, "limit", limit))

    def usage(self) -> Usage:
        """Disk usage now. Costs a stat for each document; the usage of chunks is cached (disk_usage.py)."""
        with self._lock:
            held = self._still_held(self._held)
        files = [*self._other_files(), *self._partial_blobs.files()]
        other = sum(status.st_blocks * 512 for _, status in files)
        return Usage(used=self._index.blocks() + other + held, held=held, limit=self.limit)

    def held_names(self) -> tuple[str, ...]:
        """Names of removed files that the kernel still holds."""
        with self._lock:
            self._still_held(self._held)
            return tuple(each.name for each in self._held)

    def remove(
        self,
        wanted: int | None,
        in_use: InUse,
        protected: Callable[[str], bool],
        *,
        mounted_too: bool,
        older_than: float = 0.0,
    ) -> Freed:
        """Remove `wanted` bytes (None: everything), only files older than `older_than` seconds, and files in use only with
        `mounted_too`. The caller holds `Claims.evicting`.

        `protected(name)` is called from this thread with a lock held. Raises StoreFull, StoreUnusable; what was removed before
        stays removed.
        """
        with self._lock:
            others = declared(self._directory)
            objects, documents = Either(in_use.objects, others), Either(in_use.documents, others)
            removal = _Removal(wanted, time.time() - older_than if older_than else None)
            self._remove_parts(removal)
            for mounted in (False, True) if mounted_too else (False,):
                # When everything is removed, the order does not matter, and nothing gets a second chance.
                for spare_cached in (True, False) if wanted is not None else (False,):
                    candidates = self._candidates(objects, removal, protected, mounted, spare_cached)
                    for batch in _batches(candidates, removal):
                        self._remove_objects(batch, removal, protected)
                if not mounted:
                    self._remove_documents(documents, in_use.metadata, removal)
            return Freed(
                objects=len(removal.names),
                documents=removal.documents,
                parts=removal.parts,
                bytes=removal.bytes,
                held=self._still_held(removal.held),
                names=tuple(removal.names),
            )

    def remove_strays(self, protected: Callable[[str], bool]) -> int:
        """Remove files without rows, left by a process that was killed at least an hour ago. Returns how many."""
        known = set(self._index.names())
        count = self._partial_blobs.remove_old()
        for folder in (self._directory.objects, self._directory.partial, self._directory.arrived):
            for name in os.listdir(folder):
                status = _stat(folder + name)
                if name in known or status is None or not is_name(name) or time.time() - status.st_mtime < _STRAY_AGE:
                    continue
                found = self._files.find(name)
                if found is None:
                    self._files.remove(name)  # a twin without an object
                elif not self._index.rows_of(name) and self._files.evict(name, found, protected):
                    count += 1
        return count

    def _candidates(
        self, in_use: Container[str], removal: _Removal, protected: Callable[[str], bool], mounted: bool, spare_cached: bool
    ) -> Iterator[_Victim]:
        for name in self._oldest_first():
            if (name in in_use) != mounted or protected(name):
                continue
            found = self._files.find(name)
            status = _stat(found.path) if found is not None else None
            if found is None or status is None or removal.spares(status):
                continue
            if not found.whole and abs(time.time() - status.st_mtime) < _RECENT:
                continue
            if not (spare_cached and _is_cached(found.path)):
                yield _Victim(name, found, status.st_blocks * 512)

    def _oldest_first(self) -> Iterator[str]:
        """Object names by the arrival of their first chunk. Objects that are removed or arrive meanwhile may or may not be
        included."""
        seen: set[str] = set()
        last: tuple[int, str, int] = (-1, "", -1)
        while page := self._index.arrivals(last, _PAGE):
            for _, name, _ in page:
                if name not in seen and isinstance(name, str) and is_name(name):
                    seen.add(name)
                    yield name
            last = page[-1]

    def _remove_objects(self, batch: list[_Victim], removal: _Removal, protected: Callable[[str], bool]) -> None:
        rows: dict[str, list[tuple[object, ...]]] = {}

        def delete_rows(db: sqlite3.Connection) -> None:
            for victim in batch:
                rows[victim.name] = db.execute(schema.SELECT_ROWS, (victim.name,)).fetchall()
                db.execute(schema.DELETE_ALL, (victim.name,))

        self._index.change(delete_rows, synced=True, removing=[victim.name for victim in batch])
        spared = [victim.name for victim in batch if not self._remove_object(victim, removal, protected)]

        def restore_rows(db: sqlite3.Connection) -> None:
            generation = schema.number(db, "generation")
            for name in spared:
                db.executemany(schema.INSERT_MISSING, [(*row, generation) for row in rows[name]])

        if spared:
            self._index.change(restore_rows, removing=spared)

    def _remove_object(self, victim: _Victim, removal: _Removal, protected: Callable[[str], bool]) -> bool:
        """False if the object is protected, or cannot be removed."""
        handle = _handle(victim.found.path)
        try:
            if not self._files.evict(victim.name, victim.found, protected):
                return False
        except OSError as error:
            _log.warning("%s cannot be removed: %s", victim.name, error)
            return False
        self._open.forget(victim.name)
        removal.names.append(victim.name)
        self._account(removal, victim.name, victim.bytes, handle)
        return True

    def _remove_parts(self, removal: _Removal) -> None:
        """Remove partial blobs that nobody is writing. The cost is that a later attempt downloads more."""
        for name, status in self._partial_blobs.files():
            if removal.is_enough():
                return
            if removal.spares(status):
                continue
            path = self._directory.partial + name
            handle = _handle(path)
            try:
                gone = self._partial_blobs.evict(name)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", path, error)
            else:
                if gone:
                    removal.parts += 1
                    self._account(removal, name, status.st_blocks * 512, handle)

    def _remove_documents(self, documents: Container[str], metadata: Container[str], removal: _Removal) -> None:
        """Remove manifests, configs, TOCs and EROFS images, the oldest first. EROFS images can be built again from the others."""
        mounted = {mount.path for mount in mounts()}
        for path, status in sorted(self._other_files(), key=lambda each: each[1].st_mtime):
            folder, _, name = path.rpartition("/")
            if folder == f"{self._directory.path}/erofs":
                # The small note of each layer beside the images is kept: it saves reading the TOC.
                spared = "." in name or name in metadata or self._directory.path / "layers" / name in mounted
            else:
                spared = f"{folder}/" != self._directory.documents or f"sha256:{name}" in documents
            if spared or removal.is_enough() or removal.spares(status) or abs(time.time() - status.st_mtime) < _RECENT:
                continue
            handle = _handle(path)
            with suppress(FileNotFoundError):
                os.unlink(path)
                removal.documents += 1
                self._account(removal, name, status.st_blocks * 512, handle)

    def _other_files(self) -> list[tuple[str, os.stat_result]]:
        """Everything but chunks: documents, notes, EROFS images, and the index itself."""
        path = self._directory.path
        folders = (self._directory.documents, self._directory.notes, f"{path}/erofs/")
        paths = [folder + name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)]
        paths += [f"{path}/{name}" for name in INDEX_FILES]
        return [(path, status) for path, status in zip(paths, map(_stat, paths), strict=True) if status is not None]

    def _account(self, removal: _Removal, name: str, size: int, handle: bytes | None) -> None:
        removal.bytes += size
        if handle is not None:
            held = _HeldFile(name, handle, size)
            removal.held.append(held)
            self._held.append(held)

    def _still_held(self, removed: list[_HeldFile]) -> int:
        """Bytes of removed files that still take space. The other files are removed from the list."""
        folder = os.open(self._directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            removed[:] = [each for each in removed if is_there(folder, each.handle)]
        finally:
            os.close(folder)
        return sum(each.bytes for each in removed)


def _batches(victims: Iterator[_Victim], removal: _Removal) -> Iterator[list[_Victim]]:
    """Batches of victims: no more than are needed, and few enough for one transaction."""
    while not removal.is_enough():
        batch: list[_Victim] = []
        size = 0
        for victim in victims:
            batch.append(victim)
            size += victim.bytes
            if len(batch) == _BATCH or removal.is_enough(size):
                break
        if not batch:
            return
        yield batch


def _is_cached(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_cached(fd)
    finally:
        os.close(fd)


def _handle(path: str) -> bytes | None:
    try:
        return handle_of(path)
    except OSError:  # without file handles, a removed file counts as freed
        return None


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
