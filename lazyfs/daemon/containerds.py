"""The status of a containerd: its snapshots, its lazy layers, and why others are not lazy; and of the repositories in use."""

from __future__ import annotations

from lazyfs.containerd.lazy_layers import LazyLayers, name_of
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.daemon.status import describe_repository
from lazyfs.reports.status import ContainerdStatus, LazyStatus, RefusedLayer, RepositoryStatus


def describe_containerd(name: str, snapshotter: Snapshotter, layers: LazyLayers) -> ContainerdStatus:
    """The status of one containerd. Blocking, for a thread; it reads `layers` while the event loop runs, so counts may be slightly old."""
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
    """The status of a containerd whose snapshots cannot be used."""
    return ContainerdStatus(name, 0, 0, 0, 0, (), 0, (), reason)


def describe_repositories(layers: LazyLayers) -> tuple[RepositoryStatus, ...]:
    """The status of all live repositories."""
    return tuple(
        describe_repository(repository.name, repository.fetcher.statistics(), repository.trouble)
        for repository in layers.repositories()
        if repository.fetcher is not None
    )
