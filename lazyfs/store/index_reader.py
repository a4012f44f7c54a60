"""Queries of the index, over committed and buffered rows.

Blocking. Each call is one query or a few, and costs what its docstring says.
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
"""Offset, size and digest of a chunk that has a row, to be compared with a content."""


class IndexReader:
    """The reading half of the index. Any thread may call it. Raises StoreUnusable once the index is closed."""

    _buffer: Buffer
    _void: dict[str, set[int]]
    _database: Database

    def row(self, name: str, position: int) -> Row | None:
        """The row of one chunk, as it is in the index. The caller compares it with the content."""
        # The buffer first, here and below: a row leaves it only once it is visible in sqlite.
        buffered = self._buffer.get(name, position)
        if buffered is not None:
            return buffered
        if position in self._void.get(name, ()):
            return None
        found = self._database.query(schema.SELECT_ROW, (name, position))
        return row_of(found[0]) if found else None

    def rows_with(self, digest: bytes) -> list[Row]:
        """Some rows with this digest, in any object."""
        buffered = self._buffer.with_digest(digest)
        if buffered is not None:
            return [buffered]
        return self._valid(_sound(self._database.query(schema.SELECT_SAME, (digest,))))

    def known(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of the digests that have a row in any object, which may be void."""
        known = {digest for digest in digests if self._buffer.with_digest(digest) is not None}
        for at in range(0, len(digests), schema.DIGESTS_A_QUERY):
            some = digests[at : at + schema.DIGESTS_A_QUERY]
            padded = (*some, *[b""] * (schema.DIGESTS_A_QUERY - len(some)))  # a constant statement, which sqlite has compiled
            known.update(digest for (digest,) in self._database.query(schema.SELECT_KNOWN, padded))
        return known

    def rows_of(self, name: str) -> list[Row]:
        """All committed rows of an object in order, including void ones."""
        return _sound(self._database.query(schema.SELECT_ROWS, (name,)))

    def names(self) -> list[str]:
        """All objects that have committed rows."""
        return _names(self._database.query("SELECT DISTINCT object FROM chunk"))

    def younger(self, limit: int) -> list[str]:
        """Objects with committed rows younger than the last durable generation, at most `limit` (-1: all)."""
        return _names(self._database.query(schema.SELECT_YOUNGER, (limit,)))

    def size(self) -> int:
        """Total bytes of all chunks with committed rows."""
        found = self._database.query("SELECT total(size) FROM chunk")
        return int(found[0][0]) if found else 0

    def count_blocks(self) -> int:
        """Disk space of all chunks with committed rows, in bytes of whole 4 KiB blocks. Counts them all."""
        found = self._database.query(schema.SUM_BLOCKS)
        return int(found[0][0] or 0) if found else 0

    def usage(self, names: Sequence[str]) -> tuple[int, int]:
        """How many of these objects have committed rows, and the disk space of these in bytes. One query, 3 µs a name."""
        found = self._database.query(schema.SUM_BLOCKS_OF, (json.dumps(names),))
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)

    def arrivals(self, last: tuple[int, str, int], limit: int) -> list[Any]:
        """The rows after `last` in commit order, as (generation, object, position), unchecked."""
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
        """The chunks of these objects that have rows, by position. One query, 3 µs a name."""
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
        """Like `held_many`, for spans of positions given as (name, first, last). One query, 4 µs a span."""
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
        """A fact about the whole store (schema.py); None when sqlite fails."""
        found = self._database.query(schema.SELECT_FACT, (name,))
        return found[0][0] if found and isinstance(found[0][0], int | str) else None

    def _valid(self, rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.position not in self._void.get(row.object, ())]


def _sound(found: Iterable[Sequence[Any]]) -> list[Row]:
    return [row for row in map(row_of, found) if row is not None]


def _names(found: Iterable[Sequence[Any]]) -> list[str]:
    return [name for (name,) in found if isinstance(name, str) and is_name(name)]
