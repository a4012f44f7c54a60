"""The format of index.sqlite: version, tables, and migrations from older versions.

The version is stored twice, in `application_id` and in `user_version`. If they disagree, the index is damaged. If they agree on
more than FORMAT, it is newer, and is refused whatever else is in it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lazyfs.errors import StoreUnusable
from lazyfs.kernel.boot import boot_id
from lazyfs.store.content import is_name
from lazyfs.store.directory import Directory

FORMAT = 2

_APPLICATION = 0x4C5A0000  # "LZ", plus the version
_SCHEMA = (
    """CREATE TABLE chunk (
    object TEXT NOT NULL,
    position INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    sums BLOB NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (object, position)
) WITHOUT ROWID""",
    "CREATE INDEX chunk_digest ON chunk (digest)",
    "CREATE INDEX chunk_generation ON chunk (generation)",
    "CREATE TABLE fact (name TEXT NOT NULL PRIMARY KEY, value ANY NOT NULL) WITHOUT ROWID",
)
_FACTS = {"generation": 1, "durable": 0, "limit": 0}
"""Facts about the whole store: the generation of new rows, the last generation that is on disk (durability.py), and the limit
in bytes (0: none). `removals`, which does not exist before the first one, counts the transactions that deleted rows (tally.py).
`boot` is the boot in which the store was created or last recovered.
"""

SELDOM_SYNCED = "PRAGMA synchronous = NORMAL"
"""A power failure may lose the last commits, in order, but never the index."""

_ROW = "SELECT object, position, offset, size, digest, sums FROM chunk"
SELECT_ROW = f"{_ROW} WHERE object = ? AND position = ?"
SELECT_ROWS = f"{_ROW} WHERE object = ? ORDER BY position"
SELECT_SAME = f"{_ROW} WHERE digest = ? LIMIT 8"
DIGESTS_A_QUERY = 64
SELECT_KNOWN = f"SELECT DISTINCT digest FROM chunk WHERE digest IN ({', '.join('?' * DIGESTS_A_QUERY)})"  # noqa: S608  question marks
SELECT_HELD = "SELECT position, offset, size, digest FROM chunk WHERE object = ? AND position >= ? AND position < ?"
SELECT_LIST = "SELECT size, digest FROM chunk WHERE object = ? ORDER BY position"
SELECT_MANY = "SELECT object, position, offset, size, digest FROM json_each(?) JOIN chunk ON object = json_each.value"
SELECT_SPANS = """SELECT object, position, offset, size, digest FROM json_each(?) AS span JOIN chunk
    ON object = json_extract(span.value, '$[0]')
    AND position >= json_extract(span.value, '$[1]') AND position < json_extract(span.value, '$[2]')"""
SELECT_POSITIONS = "SELECT position FROM chunk WHERE object = ? AND position >= ? AND position < ? ORDER BY position"
SELECT_YOUNGER = """SELECT DISTINCT object FROM chunk
    WHERE generation > (SELECT value FROM fact WHERE name = 'durable') LIMIT ?"""
SELECT_ANY = "SELECT 1 FROM chunk WHERE object = ? LIMIT 1"
SELECT_ARRIVALS = """SELECT generation, object, position FROM chunk WHERE (generation, object, position) > (?, ?, ?)
    ORDER BY generation, object, position LIMIT ?"""
SUM_BLOCKS_OF = """SELECT count(DISTINCT object), total((size + 4095) / 4096 * 4096) FROM json_each(?)
    JOIN chunk ON object = json_each.value"""
SUM_BLOCKS = "SELECT sum((size + 4095) / 4096 * 4096) FROM chunk"
_VALUES = "INTO chunk (object, position, offset, size, digest, sums, generation) VALUES (?, ?, ?, ?, ?, ?, ?)"
INSERT = f"INSERT OR REPLACE {_VALUES}"
INSERT_MISSING = f"INSERT OR IGNORE {_VALUES}"
DELETE = "DELETE FROM chunk WHERE object = ? AND position = ?"
DELETE_ALL = "DELETE FROM chunk WHERE object = ?"
SELECT_FACT = "SELECT value FROM fact WHERE name = ?"
SET_FACT = "INSERT OR REPLACE INTO fact (name, value) VALUES (?, ?)"


def number(connection: sqlite3.Connection, name: str) -> int:
    """A numeric fact. Raises sqlite3.DatabaseError if it is damaged."""
    found = connection.execute(SELECT_FACT, (name,)).fetchone()
    if not (found and isinstance(found[0], int) and found[0] >= 0):
        raise sqlite3.DatabaseError(f"its {name} is damaged")
    return found[0]


def note(connection: sqlite3.Connection, name: str, value: int | str) -> None:
    """Set a fact."""
    connection.execute("UPDATE fact SET value = ? WHERE name = ?", (value, name))


def _create(connection: sqlite3.Connection, boot: str) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.executemany("INSERT INTO fact (name, value) VALUES (?, ?)", [*_FACTS.items(), ("boot", boot)])


def _add_generations(connection: sqlite3.Connection, directory: Directory) -> None:
    """From format 1 to 2. All rows get the first generation, and none is known to be on disk. Names of single-chunk objects get
    their size."""
    for name, size in connection.execute("SELECT object, size FROM chunk WHERE object LIKE 'sha256-%'"):
        if is_name(sized := f"{name}-{size}"):
            with suppress(FileNotFoundError):
                os.rename(f"{directory.objects}{name}", directory.objects + sized)
    connection.execute("UPDATE chunk SET object = object || '-' || size WHERE object LIKE 'sha256-%'")
    connection.execute("ALTER TABLE chunk RENAME TO older")
    connection.execute("DROP INDEX chunk_digest")
    _create(connection, "")
    connection.execute("INSERT INTO chunk SELECT object, position, offset, size, digest, sums, 1 FROM older")
    connection.execute("DROP TABLE older")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection, Directory], None]] = {1: _add_generations}
"""Migration to the next version, by the version that it starts from. Run while no other process uses the store."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection for one caller at a time, in any thread. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        # A damaged name may not be UTF-8; then it matches no object.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(SELDOM_SYNCED)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, directory: Directory) -> bool:
    """Create or migrate the tables. Returns True if the file was empty.

    Raises StoreUnusable for a newer format, or for an older one that is in use; sqlite3.DatabaseError if the file is not an
    index.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = _tables(connection)
    if not (application or version or tables):
        _write(connection, lambda: _create(connection, boot_id()))
        return True
    if application != _APPLICATION + version or version < 1:
        raise sqlite3.DatabaseError("it is not an index of a lazyfs store")
    if version > FORMAT:
        raise StoreUnusable(
            f"the store {directory.path} has format {version}, and this lazyfs knows formats up to {FORMAT}",
            hint="Use a newer lazyfs, or name another directory with --store.",
        )
    if version < FORMAT:
        with directory.alone() as alone:
            if not alone:
                raise StoreUnusable(
                    f"the store {directory.path} has the older format {version} and is in use by an older lazyfs",
                    hint="Unmount what is mounted from it first.",
                )
            _write(connection, lambda: [MIGRATIONS[step](connection, directory) for step in range(version, FORMAT)])
        tables = _tables(connection)
    if tables != set(_SCHEMA):
        raise sqlite3.DatabaseError("its tables are damaged")
    return False


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}


def _write(connection: sqlite3.Connection, work: Callable[[], object]) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    try:
        work()
        connection.execute(f"PRAGMA application_id = {_APPLICATION + FORMAT}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
