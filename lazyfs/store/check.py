"""Reads and verifies everything in the store: `lazyfs store check`. Also exports `clear`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import msgspec

from lazyfs.kernel.page_cache import is_cached
from lazyfs.store.blocks import BLOCK, sums_of
from lazyfs.store.content import is_name, is_single, single_name
from lazyfs.store.directory import clear
from lazyfs.store.partial_blobs import is_partial_blob
from lazyfs.store.rows import Row
from lazyfs.store.store import Store
from lazyfs.store.store_error import store_error

__all__ = ["CheckReport", "check", "clear"]

_WINDOW = 16 * BLOCK


class CheckReport(msgspec.Struct, frozen=True):
    """What a check read, found damaged and dropped."""

    chunks: int
    bytes: int
    documents: int
    damaged_chunks: int
    damaged_documents: int
    leftovers: int
    """Files without a row in the index, left by a crash between the two steps. They are removed."""
    leftover_bytes: int
    in_use: bool
    """Another process has the store open. Leftovers were not looked for, because its unfinished files look the same."""
    index_rebuilt: bool
    """The index was damaged, and the store starts empty."""


def check(store: Store, progress: Callable[[int, int], None]) -> CheckReport:
    """Read and hash the whole store, drop what is damaged, and remove what a crash left.

    `progress` gets the bytes of chunks read so far, and the total. The store stays usable meanwhile, also for other processes.
    Raises StoreFull and StoreUnusable when the index cannot be written.
    """
    index = store.index
    index.change()
    sound = index.is_sound()
    total = index.size()
    chunks = done = damaged = 0
    for name in index.names():
        for row in index.rows_of(name):
            damaged += not check_chunk(store, row)
            chunks += 1
            done += row.size
            progress(done, total)
    digests = store.documents.digests()
    damaged_documents = sum(store.document(digest) is None for digest in digests)
    with store.directory.alone() as alone:
        sizes = _remove_leftovers(store) if alone else []
    return CheckReport(
        chunks=chunks,
        bytes=done,
        documents=len(digests),
        damaged_chunks=damaged,
        damaged_documents=damaged_documents,
        leftovers=len(sizes),
        leftover_bytes=sum(sizes),
        in_use=not alone,
        index_rebuilt=not sound,
    )


def check_chunk(store: Store, row: Row, *, keep_cached: bool = True) -> bool:
    """Whether a chunk matches its row; else it is dropped. With `keep_cached` False, pages that were not cached before are
    released."""
    fd = store.files.open(row.object)
    if fd is None:
        # Perhaps it was evicted after the row was read.
        return store.index.row(row.object, row.position) is None or not store.drop(row, None, "its file is gone")
    try:
        was_cached = keep_cached or is_cached(fd)
        cause = _fault(fd, row)
        if not was_cached:
            os.posix_fadvise(fd, row.offset, row.size, os.POSIX_FADV_DONTNEED)
        return cause is None or not store.drop(row, os.fstat(fd).st_ino, cause)
    finally:
        os.close(fd)


def _fault(fd: int, row: Row) -> str | None:
    if is_single(row.object) and (row.object, row.position) != (single_name(row.digest, row.size), 0):
        return "its row belongs to another object"
    hashed, sums = hashlib.sha256(), []
    for at in range(0, row.size, _WINDOW):
        wanted = min(_WINDOW, row.size - at)
        try:
            window = os.pread(fd, wanted, row.offset + at)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        if len(window) != wanted:
            return "its file is too short"
        hashed.update(window)
        sums.append(sums_of(window, row.digest))
    if hashed.digest() != row.digest:
        return "its bytes do not match its digest"
    return None if b"".join(sums) == row.sums else "its sums do not match its bytes"


def _remove_leftovers(store: Store) -> list[int]:
    """Remove files without rows. No other process may have the store open. Returns the sizes of the removed files."""
    store.index.change()
    objects, partial, arrived = store.directory.objects, store.directory.partial, store.directory.arrived
    sizes: list[int] = []
    try:
        for folder in (objects, partial):
            for name in os.listdir(folder):
                if folder == partial and is_partial_blob(name):
                    continue  # it is hashed before it is used, and removed after a day
                twice = folder == partial and os.path.exists(objects + name)
                if twice or not (is_name(name) and store.index.rows_of(name)):
                    sizes.append(os.stat(folder + name).st_blocks * 512)
                    os.unlink(folder + name)
                elif folder == objects and not is_single(name) and not store.index.is_whole(name):
                    # A crash lost its last rows: it becomes an unfinished file again.
                    os.chmod(objects + name, 0o600)
                    os.rename(objects + name, partial + name)
                elif folder == partial:
                    store.index.complete(name)
        for name in os.listdir(arrived):
            status = os.stat(arrived + name)
            if not (os.path.exists(objects + name) and os.stat(objects + name).st_ino == status.st_ino):
                # Both names are one file, so only a twin without its object frees anything.
                if status.st_nlink == 1:
                    sizes.append(status.st_blocks * 512)
                os.unlink(arrived + name)
    except OSError as error:
        raise store_error(error, f"leftovers in the store {store.directory.path} cannot be removed") from error
    return sizes
