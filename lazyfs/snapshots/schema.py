"""The tables and statements of snapshots.sqlite.

`snapshot` holds what containerd knows. `object` holds the names of lazy layers' objects in the store, by TOC: two snapshots of one layer
on different parents share them.
"""

from __future__ import annotations

from typing import Final

from lazyfs.database import Kind

_TABLES: Final = (
    """
    CREATE TABLE snapshot (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        parent TEXT NOT NULL,
        kind TEXT NOT NULL,
        labels BLOB NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        inodes INTEGER NOT NULL DEFAULT 0,
        size INTEGER NOT NULL DEFAULT 0,
        lazy BLOB,
        reason TEXT NOT NULL DEFAULT '',
        toc INTEGER,
        session TEXT NOT NULL,
        was TEXT NOT NULL DEFAULT ''
    )
    """,
    "CREATE INDEX snapshot_parent ON snapshot (parent)",
    "CREATE INDEX snapshot_toc ON snapshot (toc) WHERE toc IS NOT NULL",
    "CREATE TABLE toc (number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, noted INTEGER NOT NULL DEFAULT FALSE)",
    "CREATE TABLE object (toc INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (toc, name)) WITHOUT ROWID",
    "CREATE INDEX object_name ON object (name)",
)

SNAPSHOTS: Final = Kind(
    what="snapshots",
    application=0x4C5A_4E00,
    format=1,
    tables=_TABLES,
    hint="Remove the containers and images that containerd keeps in this snapshotter, and then the folder of that file",
)

_ROW: Final = "SELECT id, key, parent, kind, labels, created, updated, inodes, size, lazy, reason, session, was FROM snapshot"
SELECT: Final = f"{_ROW} WHERE key = ?"
SELECT_PAGE: Final = f"{_ROW} WHERE id > ? ORDER BY id LIMIT ?"
SELECT_UNNOTED: Final = f"{_ROW} JOIN toc ON toc.number = snapshot.toc WHERE NOT noted ORDER BY id"
SELECT_CHILD: Final = "SELECT key FROM snapshot WHERE parent = ? LIMIT 1"
SELECT_IDS: Final = "SELECT id FROM snapshot"
INSERT: Final = """
INSERT INTO snapshot (key, parent, kind, labels, created, updated, lazy, reason, session, toc)
    VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, (SELECT number FROM toc WHERE digest = ?9))
"""
COMMIT: Final = """
UPDATE snapshot SET was = key, key = ?2, parent = ?3, kind = 'committed', labels = ?4, created = ?5, updated = ?5, inodes = ?6, size = ?7, session = ?8
    WHERE id = ?1
"""
RELABEL: Final = "UPDATE snapshot SET labels = ?2, updated = ?3 WHERE id = ?1"
DELETE: Final = "DELETE FROM snapshot WHERE id = ?"

INSERT_TOC: Final = "INSERT OR IGNORE INTO toc (digest) VALUES (?)"
SELECT_UNNOTED_TOC: Final = "SELECT number FROM toc WHERE digest = ? AND NOT noted"
MARK_NOTED: Final = "UPDATE toc SET noted = TRUE WHERE number = ?"
SELECT_UNUSED_TOC: Final = """
SELECT number FROM toc WHERE digest = ? AND NOT EXISTS (SELECT 1 FROM snapshot WHERE snapshot.toc = toc.number)
"""
DELETE_TOC: Final = "DELETE FROM toc WHERE number = ?"
INSERT_OBJECT: Final = "INSERT INTO object (toc, name) VALUES (?, ?)"
DELETE_OBJECTS: Final = "DELETE FROM object WHERE toc = ?"
SELECT_TOC_OF: Final = "SELECT id, toc FROM snapshot WHERE key = ?"
SELECT_FIRST_NAMED: Final = """
SELECT name FROM object AS mine WHERE toc = ?1 AND NOT EXISTS (
    SELECT 1 FROM object AS other JOIN snapshot ON snapshot.toc = other.toc WHERE other.name = mine.name AND snapshot.id < ?2
)
"""
"""?1: the TOC, ?2: the snapshot. One lookup in the index of names for each object: 20 ms for 30,000."""
