"""What lazyfsd says of one containerd: its snapshots, which layers are lazy and which are not and why, and what fetches the missing parts."""

from __future__ import annotations

from lazyfs.containerd.lazy_layers import LazyLayers, name_of
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.daemon.status import describe_repository
from lazyfs.reports.status import ContainerdStatus, LazyStatus, RefusedLayer, RepositoryStatus


def describe_containerd(name: str, snapshotter: Snapshotter, layers: LazyLayers) -> ContainerdStatus:
    """Blocking, and reads `layers` as it is: for a thread while the loop goes on, what is counted may be a moment old."""
    rows = [row for page in snapshotter.pages(()) for row in page]
    lazy: dict[str, LazyStatus] = {}
    for row in rows:
        if row.lazy is not None:
            live = layers.find(row.lazy)
            trouble = (live.trouble or live.source.trouble) if live else ""
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
    return tuple(
        describe_repository(repository.name, repository.fetcher.statistics(), repository.trouble)
        for repository in layers.repositories()
        if repository.fetcher is not None
    )
