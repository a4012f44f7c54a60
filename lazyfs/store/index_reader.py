"""What the index says: the rows that are committed and those that wait for it, as if they were in one place.

Blocking; each question is one query, or few, and costs what its docstring says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lazyfs.store import schema
from lazyfs.store.content import is_name
from lazyfs.store.database import Database
from lazyfs.store.rows import Buffer, Row, row_of

HeldChunk = tuple[int, int, bytes]
"""Offset, size and digest of a chunk that has a row: what a content is held against."""


class IndexReader:
    """The reading half of the index. Any thread may call it. Raises StoreUnusable once the index is closed."""

    _buffer: Buffer
    _void: dict[str, set[int]]
    _database: Database

    def row(self, name: str, position: int) -> Row | None:
        """The row of one chunk, as it is in the index: to be held against what is asked."""
        # The buffer first, here and below: a row leaves it only when it can be seen in sqlite.
        buffered = self._buffer.get(name, position)
        if buffered is not None:
            return buffered
        if position in self._void.get(name, ()):
            return None
        found = self._database.query(schema.SELECT_ROW, (name, position))
        return row_of(found[0]) if found else None

    def rows_with(self, digest: bytes) -> list[Row]:
        """Some rows of a chunk, wherever it lies."""
        buffered = self._buffer.with_digest(digest)
        if buffered is not None:
            return [buffered]
        return self._valid(_sound(self._database.query(schema.SELECT_SAME, (digest,))))

    def known(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of the chunks that have a row somewhere, which may be void."""
        known = {digest for digest in digests if self._buffer.with_digest(digest) is not None}
        for at in range(0, len(digests), schema.DIGESTS_A_QUERY):
            some = digests[at : at + schema.DIGESTS_A_QUERY]
            padded = (*some, *[b""] * (schema.DIGESTS_A_QUERY - len(some)))  # one statement, which sqlite has compiled
            known.update(digest for (digest,) in self._database.query(schema.SELECT_KNOWN, padded))
        return known

    def rows_of(self, name: str) -> list[Row]:
        """All committed rows of one object, in order, also those that are void."""
        return _sound(self._database.query(schema.SELECT_ROWS, (name,)))

    def names(self) -> list[str]:
        """Every object that has committed rows."""
        return _names(self._database.query("SELECT DISTINCT object FROM chunk"))

    def younger(self, limit: int) -> list[str]:
        """Objects with committed rows that are younger than the last durable generation, at most `limit` (-1: all)."""
        return _names(self._database.query(schema.SELECT_YOUNGER, (limit,)))

    def size(self) -> int:
        """Bytes of all chunks that have committed rows."""
        found = self._database.query("SELECT total(size) FROM chunk")
        return int(found[0][0]) if found else 0

    def count_blocks(self) -> int:
        """Bytes that all chunks with committed rows take on disk, in blocks of 4 KiB. Counts them all."""
        found = self._database.query(schema.SUM_BLOCKS)
        return int(found[0][0] or 0) if found else 0

    def usage(self, names: Sequence[str]) -> tuple[int, int]:
        """How many of these objects have committed rows, and the bytes that they take on disk; 3 µs a name, in one query."""
        found = self._database.query(schema.SUM_BLOCKS_OF, (json.dumps(names),))
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)

    def arrivals(self, last: tuple[int, str, int], limit: int) -> list[Any]:
        """The next rows after `last`, in the order of their commits, as they are: generation, object, position."""
        return self._database.query(schema.SELECT_ARRIVALS, (*last, limit))

    def held(self, name: str, first: int, last: int) -> dict[int, HeldChunk]:
        """The chunks in [first, last) of one object that have rows, by position."""
        buffered = [self._buffer.get(name, position) for position in range(first, last)] if self._buffer else []
        found = {
            position: (offset, size, digest)
            for position, offset, size, digest in self._database.query(schema.SELECT_HELD, (name, first, last))
            if position not in self._void.get(name, ())
        }
        found.update((row.position, (row.offset, row.size, row.digest)) for row in buffered if row is not None)
        return found

    def held_many(self, names: Sequence[str]) -> dict[str, dict[int, HeldChunk]]:
        """The chunks of each of these objects that have rows, by position; 3 µs a name, in one query."""
        buffered = self._buffer.rows()
        found: dict[str, dict[int, HeldChunk]] = {}
        for name, position, offset, size, digest in self._database.query(schema.SELECT_MANY, (json.dumps(names),)):
            if position not in self._void.get(name, ()):
                found.setdefault(name, {})[position] = (offset, size, digest)
        wanted = set(names)
        for row in buffered:
            if row.object in wanted:
                found.setdefault(row.object, {})[row.position] = (row.offset, row.size, row.digest)
        return found

    def held_spans(self, spans: Sequence[tuple[str, int, int]]) -> dict[str, dict[int, HeldChunk]]:
        """As `held_many`, for positions [first, last) of objects, each span given as (name, first, last); 4 µs a span, in one query."""
        buffered = [
            row for name, first, last in spans if self._buffer.has(name) for row in self._buffer.rows_of(name, first, last)
        ]
        found: dict[str, dict[int, HeldChunk]] = {}
        for name, position, offset, size, digest in self._database.query(schema.SELECT_SPANS, (json.dumps(spans),)):
            if position not in self._void.get(name, ()):
                found.setdefault(name, {})[position] = (offset, size, digest)
        for row in buffered:
            found.setdefault(row.object, {})[row.position] = (row.offset, row.size, row.digest)
        return found

    def fact(self, name: str) -> int | str | None:
        """What is noted of the store as a whole (schema.py); None when sqlite fails."""
        found = self._database.query(schema.SELECT_FACT, (name,))
        return found[0][0] if found and isinstance(found[0][0], int | str) else None

    def _valid(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.position not in self._void.get(row.object, ())]


def _sound(found: Iterable[Sequence[Any]]) -> list[Row]:
    return [row for row in map(row_of, found) if row is not None]


def _names(found: Iterable[Sequence[Any]]) -> list[str]:
    return [name for (name,) in found if isinstance(name, str) and is_name(name)]
