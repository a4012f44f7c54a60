"""Statistics of the store's contents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from lazyfs.store.directory import Directory


class StoreStatistics(msgspec.Struct, frozen=True):
    """What is on disk, and what this process did since it opened the store."""

    objects: int
    object_bytes: int
    partial: int
    partial_bytes: int
    """Allocated bytes: partial files are sparse."""
    documents: int
    document_bytes: int
    damaged: int
    """Chunks and documents that this process found damaged and dropped."""
    kept: int
    kept_bytes: int
    copied: int
    copied_bytes: int
    """Of the kept bytes, those copied from another file of the store."""


def count(directory: Directory, *, damaged: int, kept: int, kept_bytes: int, copied: int, copied_bytes: int) -> StoreStatistics:
    """Count. Costs one stat for each file of the store."""
    objects = [status.st_size for status in _stats(directory.objects)]
    partial = [status.st_blocks * 512 for status in _stats(directory.partial)]
    documents = [status.st_size for status in _stats(directory.documents)]
    return StoreStatistics(
        objects=len(objects),
        object_bytes=sum(objects),
        partial=len(partial),
        partial_bytes=sum(partial),
        documents=len(documents),
        document_bytes=sum(documents),
        damaged=damaged,
        kept=kept,
        kept_bytes=kept_bytes,
        copied=copied,
        copied_bytes=copied_bytes,
    )


def _stats(folder: str) -> Iterator[os.stat_result]:
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # renamed or dropped by another process
            yield entry.stat()
