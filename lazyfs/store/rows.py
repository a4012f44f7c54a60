"""Rows of the index, and the buffer of rows that wait for the next commit."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from lazyfs.store.content import is_name, list_name


class Row(msgspec.Struct, frozen=True, gc=False):
    """A chunk in the store."""

    object: str
    position: int
    offset: int
    size: int
    digest: bytes
    sums: bytes


class Buffer:
    """Rows that are not committed yet. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, int], Row] = {}
        self._by_digest: dict[bytes, Row] = {}
        self._lengths: dict[str, int] = {}
        self._files: dict[tuple[str, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row, chunks: int, file: bytes) -> None:
        """Add a row of an object of `chunks` chunks. `file` is the identity of the file that has its bytes (Files.identity)."""
        with self._lock:
            self._rows[row.object, row.position] = row
            self._by_digest[row.digest] = row
            self._lengths[row.object] = chunks
            self._files[row.object, row.position] = file

    def get(self, name: str, position: int) -> Row | None:
        """The row of one chunk."""
        return self._rows.get((name, position))

    def with_digest(self, digest: bytes) -> Row | None:
        """A row with this digest, in any object."""
        return self._by_digest.get(digest)

    def rows_of(self, name: str, first: int, last: int) -> list[Row]:
        """The rows at positions [first, last) of one object."""
        if last - first > len(self._rows):
            return [row for row in self.rows() if row.object == name and first <= row.position < last]
        found = (self._rows.get((name, position)) for position in range(first, last))
        return [row for row in found if row is not None]

    def rows(self) -> list[Row]:
        """All rows, in the order of arrival."""
        with self._lock:
            return list(self._rows.values())

    def length(self, name: str) -> int:
        """The number of chunks of an object that has buffered rows."""
        return self._lengths.get(name, 0)

    def file(self, row: Row) -> bytes:
        """The identity of the file that the row's bytes were written to."""
        return self._files.get((row.object, row.position), b"")

    def has(self, name: str) -> bool:
        """Whether there are rows of this object."""
        return name in self._lengths

    def forget(self, rows: Iterable[Row]) -> None:
        """Remove these rows, unless they have been replaced."""
        with self._lock:
            for row in rows:
                if self._rows.get((row.object, row.position)) is row:
                    del self._rows[row.object, row.position], self._files[row.object, row.position]
                if self._by_digest.get(row.digest) is row:
                    del self._by_digest[row.digest]
            self._lengths = {name: self._lengths[name] for name, _ in self._rows}

    def clear(self) -> None:
        """Remove all rows."""
        self.forget(self.rows())


def row_of(found: Sequence[Any]) -> Row | None:
    """The row that sqlite returned; None if damage has changed the type of a value."""
    name, *numbers, digest, sums = found
    if not (isinstance(name, str) and is_name(name) and isinstance(digest, bytes) and isinstance(sums, bytes)):
        return None
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        return None
    return Row(*found)


def is_list_of(chunks: list[tuple[Any, Any]], name: str) -> bool:
    """Whether the chunks, as (size, digest), are those of the object. So a damaged row never moves a file with holes to
    objects/."""
    sound = all(isinstance(size, int) and size > 0 and isinstance(digest, bytes) for size, digest in chunks)
    return sound and list_name(chunks) == name
