"""The snapshots of one containerd, in a sqlite database.

The rules are those of containerd's own snapshotters (core/snapshots/storage/bolt.go, core/snapshots/testsuite), including which of two
errors is reported: containerd's garbage collector and unpacker depend on them. Each method is one transaction, synced before it returns.
Nothing but sqlite happens inside a transaction, so that none waits for a mount or the network.

If a process dies before it has answered a call, containerd repeats the call. A Prepare or Commit that another process has already carried
out succeeds; one that this process has carried out is refused.

Usage is counted by object: layers of several images share files, and each file is counted at the first lazy snapshot that names it. So
the names of each layer's objects are stored here too, once a TOC.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from lazyfs.database import SyncedDatabase
from lazyfs.errors import BadSnapshot, SnapshotBusy, SnapshotExists, SnapshotNotFound, show
from lazyfs.format.digest import Digest
from lazyfs.snapshots import schema
from lazyfs.snapshots.filters import Filter
from lazyfs.snapshots.labels import MAX_LABEL
from lazyfs.snapshots.snapshot import LazyLayer, Snapshot, shown

FILE_NAME: Final = "snapshots.sqlite"
_PAGE: Final = 100


class Snapshots(SyncedDatabase):
    """The open database. Blocking, thread-safe. A context manager.

    Every method raises StoreUnusable if the file cannot be read; those that change something raise StoreFull if the disk is full.
    """

    def __init__(self, directory: Path, session: str = "") -> None:
        """Open or create it in `directory`. `session` identifies this process. Raises as SyncedDatabase."""
        self._session = session
        super().__init__(directory / FILE_NAME, schema.SNAPSHOTS)

    def create(
        self, key: str, parent: str, kind: Literal["active", "view"], labels: Mapping[str, str], *, reason: str = ""
    ) -> Snapshot:
        """Create a snapshot on `parent`, or without a parent (`""`).

        Raises SnapshotNotFound if the parent does not exist, BadSnapshot if it is not committed or the key or labels are invalid,
        SnapshotExists if a snapshot of any kind has the key.
        """
        with self.transaction() as db:
            known = _find(db, key)
            if known is not None and self._is_repeated(known) and (known.kind, known.parent) == (kind, parent):
                return known
            return _insert(db, key, parent, kind, labels, self._session, reason=reason)

    def commit_lazy(self, name: str, parent: str, labels: Mapping[str, str], lazy: LazyLayer) -> Snapshot:
        """Create a committed snapshot. Raises as `create`."""
        with self.transaction() as db:
            db.execute(schema.INSERT_TOC, (lazy.toc_digest,))
            return _insert(db, name, parent, "committed", labels, self._session, lazy=lazy)

    def commit(self, key: str, name: str, labels: Mapping[str, str], inodes: int, size: int, *, parent: str = "") -> Snapshot:
        """Commit an active snapshot: it keeps its id and directory and gets another name, other labels and its disk usage.

        `parent`: its new parent, if it has none yet. Raises SnapshotExists if the name is taken, SnapshotNotFound if the key or parent does
        not exist, SnapshotBusy if the snapshot is not active or the parent not committed, BadSnapshot if it has another parent, or for an
        invalid name or labels.
        """
        _check_key(name)
        with self.transaction() as db:
            known = _find(db, name)
            if known is not None and self._is_repeated(known) and known.was == key and _find(db, key) is None:
                return known
            if known is not None:
                raise SnapshotExists(f"there is a snapshot {shown(name)} already")
            found = _get(db, key)
            if found.kind != "active":
                raise SnapshotBusy(f"the snapshot {shown(key)} is {_KINDS[found.kind]}: only an active one can be committed")
            if parent and found.parent and parent != found.parent:
                raise BadSnapshot(
                    f"the snapshot {shown(key)} has the parent {shown(found.parent)}, and cannot be committed onto {shown(parent)}"
                )
            if parent and _get(db, parent).kind != "committed":
                raise SnapshotBusy(f"the parent {shown(parent)} of the snapshot {shown(key)} is not committed")
            values = (found.id, name, found.parent or parent, _labels(labels), time.time_ns(), inodes, size, self._session)
            db.execute(schema.COMMIT, values)
            return _get(db, name)

    def remove(self, key: str) -> Snapshot:
        """Remove a snapshot and return it. Raises SnapshotNotFound; SnapshotBusy while it has children."""
        with self.transaction() as db:
            found = _get(db, key)
            child = db.execute(schema.SELECT_CHILD, (key,)).fetchone()
            if child is not None:
                raise SnapshotBusy(f"the snapshot {shown(key)} cannot be removed: {shown(child[0])} is its child")
            db.execute(schema.DELETE, (found.id,))
            unused = None if found.lazy is None else db.execute(schema.SELECT_UNUSED_TOC, (found.lazy.toc_digest,)).fetchone()
            if unused is not None:
                db.execute(schema.DELETE_OBJECTS, unused)
                db.execute(schema.DELETE_TOC, unused)
            return found

    def stat(self, key: str) -> Snapshot:
        """Raises SnapshotNotFound."""
        with self.reading() as db:
            return _get(db, key)

    def update(self, key: str, labels: Mapping[str, str], fieldpaths: Sequence[str]) -> Snapshot:
        """Change the labels that `fieldpaths` names (`labels.KEY`; removed if it is not in `labels`), or all (`labels`, or no path).

        Raises SnapshotNotFound; BadSnapshot for other paths and invalid labels.
        """
        with self.transaction() as db:
            found = _get(db, key)
            changed = dict(found.labels)
            for path in fieldpaths or ("labels",):
                if path == "labels":
                    changed = dict(labels)
                elif path.startswith("labels."):
                    label = path.removeprefix("labels.")
                    changed[label] = labels.get(label, "")
                else:
                    raise BadSnapshot(f"the field {shown(path)} of the snapshot {shown(key)} cannot be changed: only labels can")
            db.execute(schema.RELABEL, (found.id, _labels(changed), time.time_ns()))
            return _get(db, key)

    def pages(self, filters: Sequence[str] = ()) -> Iterator[tuple[Snapshot, ...]]:
        """The snapshots that match any of the filters, the oldest first, in pages that are never empty.

        Raises BadSnapshot at once for an invalid filter. Nothing is locked or open between two pages: a snapshot that is created or removed
        meanwhile may be missing, any other is seen once.
        """
        return self._pages(Filter(filters))

    def _pages(self, wanted: Filter) -> Iterator[tuple[Snapshot, ...]]:
        last = 0
        while True:
            with self.reading() as db:
                found = tuple(map(_snapshot, db.execute(schema.SELECT_PAGE, (last, _PAGE))))
            if not found:
                return
            last = found[-1].id
            if page := tuple(filter(wanted.matches, found)):
                yield page

    def ancestry(self, key: str) -> tuple[Snapshot, ...]:
        """The snapshot, its parent, and so on down to the base. Raises SnapshotNotFound."""
        chain: list[Snapshot] = []
        with self.reading() as db:
            while not chain or chain[-1].parent:
                chain.append(_get(db, chain[-1].parent if chain else key))
        return tuple(chain)

    def ids(self) -> frozenset[int]:
        """The ids of all snapshots: a directory with another number is a leftover."""
        with self.reading() as db:
            return frozenset(number for (number,) in db.execute(schema.SELECT_IDS))

    def without_objects(self) -> tuple[Snapshot, ...]:
        """Lazy snapshots without recorded objects: lazyfsd was killed between `commit_lazy` and `add_objects`."""
        with self.reading() as db:
            return tuple(map(_snapshot, db.execute(schema.SELECT_UNNOTED)))

    def add_objects(self, toc_digest: Digest, names: Iterable[str]) -> None:
        """Record the objects of the layer with that TOC, for `first_objects`. Does nothing if they are recorded, or no snapshot has that TOC.

        Costs 0.2 s for 30,000 names, during which other calls wait.
        """
        ordered = sorted(set(names))  # in the order of the index: takes half the time
        with self.transaction() as db:
            found = db.execute(schema.SELECT_UNNOTED_TOC, (toc_digest,)).fetchone()
            if found is not None:
                db.executemany(schema.INSERT_OBJECT, ((found[0], name) for name in ordered))
                db.execute(schema.MARK_NOTED, found)

    def first_objects(self, key: str) -> list[str]:
        """The objects that this lazy snapshot is the first to name; empty for one that is not lazy. Raises SnapshotNotFound."""
        with self.reading() as db:
            found = db.execute(schema.SELECT_TOC_OF, (key,)).fetchone()
            if found is None:
                raise SnapshotNotFound(f"there is no snapshot {shown(key)}")
            number, toc = found
            return [name for (name,) in db.execute(schema.SELECT_FIRST_NAMED, (toc, number))]

    def _is_repeated(self, known: Snapshot) -> bool:
        """Whether another process made `known`: the caller may not have got the answer."""
        return known.session != self._session


_KINDS: Final = {"active": "active", "view": "a view", "committed": "committed"}


def _insert(
    db: sqlite3.Connection,
    key: str,
    parent: str,
    kind: Literal["active", "view", "committed"],
    labels: Mapping[str, str],
    session: str,
    *,
    lazy: LazyLayer | None = None,
    reason: str = "",
) -> Snapshot:
    _check_key(key)
    if parent:
        found = _find(db, parent)
        if found is None:
            raise SnapshotNotFound(f"the parent {shown(parent)} of the snapshot {shown(key)} does not exist")
        if found.kind != "committed":
            raise BadSnapshot(f"the parent {shown(parent)} of the snapshot {shown(key)} is {_KINDS[found.kind]}, not committed")
    if _find(db, key) is not None:
        raise SnapshotExists(f"there is a snapshot {shown(key)} already")
    encoded = None if lazy is None else msgspec.json.encode(lazy)
    toc = None if lazy is None else lazy.toc_digest
    db.execute(schema.INSERT, (key, parent, kind, _labels(labels), time.time_ns(), encoded, reason, session, toc))
    return _get(db, key)


def _check_key(key: str) -> None:
    if not key:
        raise BadSnapshot("a snapshot needs a key")


def _labels(labels: Mapping[str, str]) -> bytes:
    """Labels as they are stored. A label without a value is dropped, as in containerd's own database."""
    kept = {key: value for key, value in labels.items() if value}
    for key, value in kept.items():
        if not key or len(key.encode()) + len(value.encode()) > MAX_LABEL:
            raise BadSnapshot(f"the label {show(key)} is empty, or has more than {MAX_LABEL} bytes with its value")
    return msgspec.json.encode(kept)


def _find(db: sqlite3.Connection, key: str) -> Snapshot | None:
    row = db.execute(schema.SELECT, (key,)).fetchone()
    return None if row is None else _snapshot(row)


def _get(db: sqlite3.Connection, key: str) -> Snapshot:
    found = _find(db, key)
    if found is None:
        raise SnapshotNotFound(f"there is no snapshot {shown(key)}")
    return found


def _snapshot(row: tuple[Any, ...]) -> Snapshot:
    number, key, parent, kind, labels, created, updated, inodes, size, lazy, reason, session, was = row
    return Snapshot(
        number,
        key,
        parent,
        kind,
        msgspec.json.decode(labels, type=dict[str, str]),
        created,
        updated,
        inodes,
        size,
        None if lazy is None else msgspec.json.decode(lazy, type=LazyLayer),
        reason,
        session,
        was,
    )
