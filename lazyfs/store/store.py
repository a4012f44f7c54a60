"""The store: chunks, the objects they make, and documents, for all images and processes of this machine.

It knows digests and objects, not images. It is synchronous and thread-safe: callers on an event loop use threads. It trusts
nothing in it without a check. Damage is never an error for a reader: what is damaged is dropped, counted, logged, and reported
as missing, so that it is fetched again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from lazyfs.errors import LocalError
from lazyfs.format.digest import Digest
from lazyfs.store.blocks import read_checked, sums_of
from lazyfs.store.content import Content, is_single
from lazyfs.store.damage import Damage
from lazyfs.store.directory import Directory
from lazyfs.store.documents import Documents
from lazyfs.store.durability import Durability, recover
from lazyfs.store.eviction import Eviction
from lazyfs.store.files import Files
from lazyfs.store.index import Index
from lazyfs.store.missing import absent, lacking, missing_many
from lazyfs.store.notes import Notes
from lazyfs.store.open_files import OpenFile, OpenFiles
from lazyfs.store.partial_blobs import PartialBlobs, is_partial_blob
from lazyfs.store.rows import Row
from lazyfs.store.statistics import StoreStatistics, count
from lazyfs.store.store_error import store_error
from lazyfs.store.tally import Tally

_log = logging.getLogger("lazyfs.store")

_STRIPES = 64
_TRIES = 3


class Store:
    """The open store. Close it, or use it as a context manager. Once closed, it raises StoreUnusable."""

    def __init__(self, directory: Directory) -> None:
        """Use `open` instead."""
        self.directory = directory
        self.files = Files(directory)
        self.documents = Documents(directory)
        self.notes = Notes(directory)
        self._open = OpenFiles(self.files)
        # While one thread checks a chunk, others that want it wait, instead of reading all of it as well.
        self._checking = [threading.Lock() for _ in range(_STRIPES)]
        self._counting = threading.Lock()
        self._kept = self._kept_bytes = self._copied = self._copied_bytes = 0
        self._claiming = threading.Lock()
        self._released: set[bytes] = set()
        self._closed = False
        self.index = Index(
            directory,
            completed=self.files.promote,
            identity=self.files.identity,
            given_up=self._give_up,
            after_commit=self._release_claims,
        )
        self._damage = Damage(directory, self.files, self.index, self._open)
        try:
            recover(directory, self.files, self.index)
        except BaseException:
            self.index.close()
            raise
        self.durability = Durability(directory, self.index)
        self.partial_blobs = PartialBlobs(directory)
        self.eviction = Eviction(directory, self.files, self.index, self._open, self.partial_blobs)
        with suppress(LocalError):  # logged; a file that stays in partial/ is read from there
            for name in os.listdir(directory.partial):
                if not is_partial_blob(name):
                    self.index.complete(name)
        with suppress(OSError):  # the next process to open the store tries again
            self.partial_blobs.remove_old()

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open the store, and create it if necessary. Several processes may have it open.

        Raises StoreUnusable: no permission, another user's directory, other files in it, a newer format, an older one that is
        in use; and StoreFull if there is no room to open it. A damaged store is not an error: it starts empty, with a warning.
        """
        opened = Directory(directory.absolute())
        try:
            return cls(opened)
        except BaseException:
            opened.close()
            raise

    def close(self) -> None:
        """Commit what is buffered, and close."""
        if self._closed:
            return
        self._closed = True
        self.index.close()
        self._open.close()
        self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def document(self, digest: Digest) -> bytes | None:
        """A verified manifest, config or TOC; None if it is not in the store, or was damaged."""
        return self.documents.document(digest)

    def keep_document(self, digest: Digest, data: bytes | bytearray) -> None:
        """Keep a document that hashes to `digest`. Raises StoreFull, StoreUnusable."""
        self.documents.keep(digest, data)

    def note(self, key: str) -> str | None:
        """A small fact that was noted before: a hint that no digest covers."""
        return self.notes.note(key)

    def keep_note(self, key: str, value: str) -> None:
        """Note a small fact. Raises StoreFull, StoreUnusable."""
        self.notes.keep(key, value)

    def missing(self, content: Content, first: int, last: int) -> list[int]:
        """The chunks in [first, last) that are not in the store, from the index: no file is read."""
        return absent(content, range(first, last), self.index.held(content.name, first, last))

    def missing_many(self, contents: Sequence[Content]) -> list[list[int]]:
        """For each content, the chunks that are not in the store: `missing` for a whole image, 3 µs a content."""
        return missing_many(self.index, contents)

    def lacking(self, chunks: Sequence[tuple[Content, int]]) -> list[bool]:
        """For each chunk, given as (content, index), whether it is not in the store, from the index: no file is read. 5 µs a
        chunk, however many chunks its content has."""
        return lacking(self.index, chunks)

    def tally(self, contents: Iterable[Content]) -> Tally:
        """Count the missing chunks of these objects, and keep the count up to date as long as the result is referenced.
        Blocking."""
        tally = Tally(self.index, contents)
        self.index.tallies.add(tally)
        return tally

    def held_anywhere(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of the digests that are in some file of the store, from the index: `copy_local` may find them."""
        return self.index.known(digests)

    def usage(self, names: Sequence[str]) -> tuple[int, int]:
        """(files, bytes on disk) of these objects. Uncommitted rows are not counted."""
        return self.index.usage(names)

    def read(self, content: Content, index: int, start: int, length: int) -> bytes | None:
        """Bytes [start, start + length) of chunk `index`, 0 <= start <= start + length <= its size.

        None if the chunk is not in the store, or was damaged and is dropped. The first read of a chunk in this process checks
        all of it.
        """
        if start < 0 or length < 0 or start + length > content.chunk_size(index):
            raise ValueError(f"[{start}, +{length}) is not inside chunk {index} of {content.name}")
        file = self._open.take(content.name)
        if file is not None:
            try:
                if file.is_checked(index) and file.size == content.size:
                    data = _pread(file, content.offsets[index] + start, length)
                    if data is not None:
                        return data
            finally:
                self._open.release(file)
        row = self.index.row(content.name, index)
        if row is None or not _fits(row, content, index):
            return None
        return self._read_row(row, start, length)

    def keep(self, content: Content, index: int, data: bytes | memoryview) -> None:
        """Keep a chunk. The caller has verified that `data` hashes to its digest. The last chunk completes the object.

        Raises StoreFull (no room, quota, file size limit) or StoreUnusable (any other error); the chunk is not in the store
        then.
        """
        size, digest, name = content.chunk_size(index), content.digests[index], content.name
        if len(data) != size:
            raise ValueError(f"chunk {index} of {name} has {size} bytes, not {len(data)}")
        self.index.check_writable()
        try:
            if is_single(name):
                self.files.put_whole(name, data)
                file = b""
            else:
                self._damage.drop_if_gone(name)
                file = self.files.put_chunk(name, content.size, content.offsets[index], data)
        except OSError as error:
            self._remove_without_rows(name)
            raise store_error(error, f"chunk {index} of {name} cannot be kept") from error
        row = Row(name, index, content.offsets[index], size, digest, sums_of(data, digest))
        with self._counting:
            self._kept += 1
            self._kept_bytes += size
        self.index.add(row, len(content.digests), file)

    def copy_local(self, content: Content, index: int) -> bool:
        """Copy the chunk from another file of the store, or from another position of its own. Returns whether it is in the
        store now.

        Raises StoreFull, StoreUnusable like `keep`.
        """
        size, digest = content.chunk_size(index), content.digests[index]
        for row in self.index.rows_with(digest):
            if row.digest != digest or row.size != size:
                continue
            if row.object == content.name and row.position == index:
                if not self.missing(content, index, index + 1):
                    return True
                continue  # a damaged index may find by digest what it does not find by name
            data = self._read_row(row, 0, size, recheck=True)
            if data is None:
                continue
            self.keep(content, index, data)
            with self._counting:
                self._copied += 1
                self._copied_bytes += size
            return True
        return False

    def claim(self, digest: bytes) -> bool:
        """Try to claim the chunk for this process; never waits. The kernel releases the claim when the process dies.

        Claims of one process do not conflict: it coordinates its own threads.
        """
        with self._claiming:
            self._released.discard(digest)
            return self.directory.claims.claim(digest)

    def release(self, digest: bytes) -> None:
        """Release the claim once other processes can see the chunk (within 50 ms), or at once if it is not in the store."""
        with self._claiming:
            if self.index.is_pending(digest):
                self._released.add(digest)
            else:
                self.directory.claims.release(digest)

    @property
    def damaged(self) -> int:
        """Chunks that this process found damaged and dropped."""
        return self._damage.damaged

    @property
    def all_damaged(self) -> int:
        """The same, plus documents."""
        return self._damage.damaged + self.documents.damaged

    @property
    def kept(self) -> int:
        """Chunks that this process has kept."""
        return self._kept

    @property
    def kept_bytes(self) -> int:
        """Bytes that this process has kept."""
        return self._kept_bytes

    def statistics(self) -> StoreStatistics:
        """Count. Costs one stat for each file of the store."""
        with self._counting:
            return count(
                self.directory,
                damaged=self.all_damaged,
                kept=self._kept,
                kept_bytes=self._kept_bytes,
                copied=self._copied,
                copied_bytes=self._copied_bytes,
            )

    def publish(self, content: Content) -> bool:
        """Whether the complete object is now in objects/ and arrived/, so that a native mount that looks again finds it.

        Creates a missing twin, and completes an object whose chunks are all in the store. False: some of it has to be fetched.
        Rows are dropped if their file was removed by hand. Costs two stats in the usual case. Raises StoreFull, StoreUnusable.

        A caller that announces the name notes that before this call: `Eviction` checks it before it removes an object.
        """
        name = content.name
        try:
            size = self.files.published(name)
            if size is None and not self._has_gap(content):
                self.index.change()
                self.index.complete(name)
                size = self.files.published(name)
                if size is None:
                    self._damage.note_missing(name)
        except OSError as error:
            raise store_error(error, f"{name} cannot be published") from error
        return size == content.size

    def _has_gap(self, content: Content) -> bool:
        """Whether some of it is missing. If the first gap is known, costs one row: large unfinished files are asked for often."""
        name, count = content.name, len(content.digests)
        if count > 1 and self.index.has_gap(name, count):
            return True
        missing = self.missing(content, 0, count)
        if missing:
            self.index.note_gap(name, missing[0])
        return bool(missing)

    def drop(self, row: Row, inode: int | None, cause: str) -> bool:
        """Drop a chunk that was found damaged in the file `inode` (None: there is no file). False if the name now belongs to
        another file."""
        return self._damage.drop(row, inode, cause)

    def _give_up(self, row: Row) -> None:
        """There is no room for the row, and without it the bytes only take space."""
        with suppress(OSError):  # the file stays as a leftover, for `check`
            if is_single(row.object):
                self.files.remove(row.object)
            else:
                self._remove_without_rows(row.object)
        self._open.forget(row.object)

    def _remove_without_rows(self, name: str) -> None:
        self.index.if_no_rows(name, lambda: self.files.discard(self.directory.partial + name))

    def _release_claims(self) -> None:
        """Called after each attempt to commit: a claim is not kept for a row that may never be visible."""
        with self._claiming:
            released = list(self._released)
        for digest in released:
            # One at a time, so that the event loop, which releases claims too, waits for one at most.
            with self._claiming:
                if digest in self._released and not self.index.is_pending(digest):
                    self._released.discard(digest)
                    self.directory.claims.release(digest)

    def _read_row(self, row: Row, start: int, length: int, *, recheck: bool = False) -> bytes | None:
        """Bytes of the chunk that `row` describes. None if it is missing or damaged; it is dropped then.

        `recheck`: check it even if this process has done so before, because the row was not compared with a content.
        """
        with self._checking[hash((row.object, row.position)) % _STRIPES]:
            for _ in range(_TRIES):
                try:
                    file = self._open.open(row.object)
                except OSError as error:
                    _log.warning("%s cannot be opened: %s", row.object, error)
                    return None
                if file is None:
                    if self._damage.drop(row, None, "its file is gone"):
                        return None
                    continue
                try:
                    data = self._read_open(file, row, start, length, recheck)
                finally:
                    self._open.release(file)
                if data is not None:
                    return data
                if self._damage.drop(row, file.inode, "its bytes do not match their sums"):
                    return None
                # Another process has replaced the file.
                self._open.forget(row.object)
        return None

    def _read_open(self, file: OpenFile, row: Row, start: int, length: int, recheck: bool) -> bytes | None:
        if file.is_checked(row.position) and not recheck:
            data = _pread(file, row.offset + start, length)
            if data is not None:
                return data
        data = read_checked(file.fd, row.offset, row.size, row.digest, row.sums, start, length)
        if data is not None:
            self._open.mark_checked(file, row.position)
        return data


def _fits(row: Row, content: Content, index: int) -> bool:
    return (row.size, row.offset, row.digest) == (content.chunk_size(index), content.offsets[index], content.digests[index])


def _pread(file: OpenFile, offset: int, length: int) -> bytes | None:
    try:
        data = os.pread(file.fd, length, offset)
    except OSError:
        return None
    return data if len(data) == length else None
