"""What lazyfsd says of one containerd: its snapshots, which layers are lazy and which are not and why, and who brings what is missing."""

from __future__ import annotations

import msgspec

from lazyfs.containerd.lazy_layers import LazyLayers, name_of
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.snapshots.snapshot import Snapshot


class RefusedLayer(msgspec.Struct, frozen=True):
    """A layer that containerd wanted lazy, and unpacked itself."""

    key: str
    """Of its snapshot."""
    reason: str


class LazyStatus(msgspec.Struct, frozen=True):
    """A lazy layer."""

    reference: str
    """Where its blob is: `docker://HOST/REPO`."""
    digest: str
    size: int
    """The blob's, bytes."""
    uses: int
    """By roots that are mounted, and by its pull; 0 for one that is only kept."""
    trouble: str
    """Why what is missing of it cannot be had; empty while nothing is wrong."""


class ContainerdStatus(msgspec.Struct, frozen=True):
    """One containerd."""

    name: str
    snapshots: int
    active: int
    views: int
    roots: int
    """Overlays that lazyfsd has mounted for active ones and views."""
    lazy: tuple[LazyStatus, ...]
    """Each once, whatever it stands on."""
    unpacked: int
    refused: tuple[RefusedLayer, ...]
    """Of those that were unpacked."""
    trouble: str = ""
    """Why it is not served, and nothing else is known of it; empty where it is."""


class RepositoryStatus(msgspec.Struct, frozen=True):
    """Where something is fetched from just now, or was a moment ago."""

    name: str
    requests: int
    received: int
    """Compressed bytes of chunks."""
    chunks: int
    unkept: int
    errors: dict[str, int]
    trouble: str


def describe_containerd(name: str, snapshotter: Snapshotter, layers: LazyLayers) -> ContainerdStatus:
    """Blocking, and reads `layers` as it is: for a thread while the loop goes on, what is counted may be a moment old."""
    rows: list[Snapshot] = [row for page in snapshotter.pages(()) for row in page]
    lazy: dict[str, LazyStatus] = {}
    for row in rows:
        if row.lazy is not None:
            live = layers.live.get(name_of(row.lazy))
            trouble = (live.trouble or live.repository.trouble) if live else ""
            uses = live.uses.count if live else 0
            lazy[name_of(row.lazy)] = LazyStatus(row.lazy.reference, row.lazy.digest, row.lazy.size, uses, trouble)
    return ContainerdStatus(
        name=name,
        snapshots=len(rows),
        active=sum(row.kind == "active" for row in rows),
        views=sum(row.kind == "view" for row in rows),
        roots=len(snapshotter.roots.mounted()),
        lazy=tuple(lazy.values()),
        unpacked=sum(row.kind == "committed" and row.lazy is None for row in rows),
        refused=tuple(RefusedLayer(row.key, row.reason) for row in rows if row.reason),
    )


def unserved_containerd(name: str, reason: str) -> ContainerdStatus:
    """One whose snapshots cannot be used."""
    return ContainerdStatus(name, 0, 0, 0, 0, (), 0, (), reason)


def describe_repositories(layers: LazyLayers) -> tuple[RepositoryStatus, ...]:
    """All that live."""
    found = []
    for repository in layers.repositories():
        if repository.fetcher is not None:
            told = repository.fetcher.statistics()
            found.append(
                RepositoryStatus(
                    repository.name, told.requests, told.received, told.chunks, told.unkept, told.errors, repository.trouble
                )
            )
    return tuple(found)
