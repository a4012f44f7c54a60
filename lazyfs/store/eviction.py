"""Room: what the store takes, and what is removed when that is too much.

Victims are whole files. First come the blobs of layers that somebody began to fetch whole and nobody goes on with (partial_blobs.py), then the
objects that no mounted image consists of, then the documents and EROFS images that nothing mounted needs, then what is in use; in each
the oldest arrival first, but for a second chance: neither this process nor the file's access time sees the kernel read an object, but its
page cache does, so files with pages there wait until none without is left. Nothing is removed that somebody answered for a moment ago (`protected`: overlayfs was told to look again), nor what
is being written.

A removal is two steps. The rows go first, in a synced transaction (durability.py tells why). Then, with the lock under which
objects get and lose their names, `protected` is asked once more, and the names go: whoever notes that he answers for a name before
he looks whether it is there finds either the file or nothing. Rows of what turned out to be protected come back.

A file that was unlinked takes room for as long as the kernel holds it for a reader or an overlay's inode. It counts as used until
its handle says that it has gone. A process that begins anew has forgotten what the kernel still held.

One process at a time does this (claims.py), for only it knows what it has answered for.
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
"""Seconds since a file under way was last written, or a document kept, for which it stays."""
_STRAY_AGE = 3600.0


class Usage(msgspec.Struct, frozen=True):
    """Bytes on disk."""

    used: int
    """By everything in the store, `held` included."""
    held: int
    """By removed files that the kernel still holds for a reader or a mount."""
    limit: int
    """What all may take; 0: any number."""


class Freed(msgspec.Struct, frozen=True):
    """What was removed."""

    objects: int = 0
    documents: int = 0
    """Manifests, configs, TOCs and EROFS images."""
    parts: int = 0
    """Blobs of whole layers, as far as they had arrived."""
    bytes: int = 0
    """On disk, in all."""
    held: int = 0
    """Of these, what the kernel still held when all was removed: it comes free when its readers end."""
    names: tuple[str, ...] = ()
    """Of the objects."""


class _Victim(NamedTuple):
    name: str
    found: FoundFile
    bytes: int


class _HeldFile(NamedTuple):
    """A removed file, whose space the kernel may hold."""

    name: str
    handle: bytes
    bytes: int


class _Removal:
    """One removal, under way."""

    def __init__(self, wanted: int | None, before: float | None) -> None:
        self.wanted = wanted
        self.before = before
        """Only what came before that time goes."""
        self.names: list[str] = []
        self.documents = 0
        self.parts = 0
        self.bytes = 0
        self.held: list[_HeldFile] = []

    def is_enough(self, more: int = 0) -> bool:
        return self.wanted is not None and self.bytes + more >= self.wanted

    def spares(self, status: os.stat_result) -> bool:
        """Whether a file came too late to go."""
        return self.before is not None and status.st_mtime > self.before


class Eviction:
    """Measures and removes. Any thread may call it."""

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
        """Bytes that the store may take; 0: any number. Of all processes: it is kept in the index."""
        limit = self._index.fact("limit")
        return limit if isinstance(limit, int) else 0

    def set_limit(self, limit: int) -> None:
        """Set the limit, for all processes and from now on. Raises StoreFull, StoreUnusable."""
        self._index.change(lambda db: schema.note(db, "limit", limit))

    def usage(self) -> Usage:
        """What chunks take is counted now and then (disk_usage.py); a stat for each document."""
        with self._lock:
            held = self._still_held(self._held)
        files = [*self._other_files(), *self._partial_blobs.files()]
        other = sum(status.st_blocks * 512 for _, status in files)
        return Usage(used=self._index.blocks() + other + held, held=held, limit=self.limit)

    def held_names(self) -> tuple[str, ...]:
        """The removed files that the kernel still holds."""
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
        """Remove until `wanted` bytes are removed (None: all there are), what is in use only if `mounted_too`, and only what came
        more than `older_than` seconds ago. Only for who holds `Claims.evicting`.

        `protected(name)` is called from this thread, with a lock held. Raises StoreFull, StoreUnusable; what is removed by
        then stays so.
        """
        with self._lock:
            others = declared(self._directory)
            objects, documents = Either(in_use.objects, others), Either(in_use.documents, others)
            removal = _Removal(wanted, time.time() - older_than if older_than else None)
            self._remove_parts(removal)
            for mounted in (False, True) if mounted_too else (False,):
                # Without an end there is no order either: then nothing gets a second chance.
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
        """Remove files that no row speaks of: a process was killed between the two, an hour ago at the least. How many they were."""
        known = set(self._index.names())
        count = self._partial_blobs.remove_old()
        for folder in (self._directory.objects, self._directory.partial, self._directory.arrived):
            for name in os.listdir(folder):
                status = _stat(folder + name)
                if name in known or status is None or not is_name(name) or time.time() - status.st_mtime < _STRAY_AGE:
                    continue
                found = self._files.find(name)
                if found is None:
                    self._files.remove(name)  # a twin alone
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
        """Objects by the arrival of their first chunk. What is removed or arrives meanwhile may or may not be among them."""
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
        """False when it stays after all."""
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
        """Blobs of whole layers that nobody goes on with just now: another attempt would fetch more, and nothing else."""
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
        """Manifests, configs, TOCs, and EROFS images, which any of these can be made of again; the oldest first."""
        mounted = {mount.path for mount in mounts()}
        for path, status in sorted(self._other_files(), key=lambda each: each[1].st_mtime):
            folder, _, name = path.rpartition("/")
            if folder == f"{self._directory.path}/erofs":
                # A small note of each layer stays beside the images: it spares the reading of the TOC.
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
        """What is not chunks: documents, notes, EROFS images, the index itself."""
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
        """Bytes of removed files that still take room; the others are struck from the list."""
        folder = os.open(self._directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            removed[:] = [each for each in removed if is_there(folder, each.handle)]
        finally:
            os.close(folder)
        return sum(each.bytes for each in removed)


def _batches(victims: Iterator[_Victim], removal: _Removal) -> Iterator[list[_Victim]]:
    """No more than are needed, and not too many for one transaction."""
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
    except OSError:  # a file system without handles: then what is removed counts as gone
        return None


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
