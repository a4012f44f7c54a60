"""What tests put into a database of snapshots, and read out of it."""

from __future__ import annotations

from lazyfs.format.digest import digest_of
from lazyfs.snapshots.database import Snapshots
from lazyfs.snapshots.snapshot import LazyLayer, Snapshot


def committed(snapshots: Snapshots, name: str, parent: str = "") -> Snapshot:
    snapshots.create(f"{name}-active", parent, "active", {})
    return snapshots.commit(f"{name}-active", name, {}, 1, 4096)


def a_layer(toc: str = "toc") -> LazyLayer:
    return LazyLayer("docker://host/repo", digest_of(b"blob"), 7, "application/x", digest_of(toc.encode()), 3)


def keys(snapshots: Snapshots, *filters: str) -> set[str]:
    return {snapshot.key for page in snapshots.pages(filters) for snapshot in page}
