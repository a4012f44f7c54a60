"""The status of lazyfsd's mounts, and of the repositories that it fetches from."""

from __future__ import annotations

import os
from typing import NamedTuple

import trio

from lazyfs.daemon.mounts import LiveMount
from lazyfs.fetch.statistics import FetchStatistics
from lazyfs.gate.gate import Gate
from lazyfs.live.image import LiveImage
from lazyfs.reports.status import LayerStatus, MountStatus, RepositoryStatus, ServiceStatus
from lazyfs.store.store import Store
from lazyfs.store.tally import Missing
from lazyfs.tasks import Failures


class Measured(NamedTuple):
    """The values for metrics."""

    status: ServiceStatus
    mounts: int
    """The number of native mounts."""
    repositories: tuple[RepositoryStatus, ...]
    """Including those of mounted images. Several may have the same name."""


def describe_repository(name: str, fetched: FetchStatistics, trouble: str) -> RepositoryStatus:
    """The status of one repository, for one fetcher."""
    return RepositoryStatus(name, fetched.requests, fetched.received, fetched.chunks, fetched.unkept, fetched.errors, trouble)


async def describe_mount(mount: LiveMount, live: LiveImage | None, store: Store, gate: Gate, failures: Failures) -> MountStatus:
    """The status of one mount; two mounts of an image have the same counts. The first call for an image checks every chunk, later calls
    cost O(layers)."""
    row = mount.row
    missing, total = Missing(0, 0), 0
    layers: tuple[LayerStatus, ...] = ()
    errors: dict[str, int] = {}
    requests = received = chunks = unkept = 0
    if live is not None:
        layers = tuple(LayerStatus(str(layer.digest), layer.descriptor.size, layer.reason) for layer in live.layers)
    if live is not None and live.is_known and live.fetcher is not None:
        tally = await live.tally(store)
        missing = await trio.to_thread.run_sync(tally.measure)
        total = sum(blob.total for blob in live.blobs)
        fetched = live.fetcher.statistics()
        errors, requests, received = fetched.errors, fetched.requests, fetched.received
        chunks, unkept = fetched.chunks, fetched.unkept
    return MountStatus(
        directory=row.mount.directory,
        image=row.mount.image,
        pid=os.getpid(),
        store=str(store.directory.path),
        background=row.mount.background,
        complete=live is not None and live.is_known and missing.chunks == 0,
        missing_chunks=missing.chunks,
        missing_bytes=missing.size,
        total_bytes=total,
        layers=len(layers),
        layer_bytes=sum(layer.size for layer in layers),
        requests=requests,
        received_bytes=received,
        chunks=chunks,
        unkept=unkept,
        damaged=store.all_damaged,
        errors=errors,
        trouble=row.trouble or (live.trouble if live else "the image is being looked for in the store"),
        mode="native",
        upper=row.mount.upper,
        layer_states=layers,
        published=gate.counts["published"],
        entries=gate.counts["entries"],
        reads=gate.counts["reads"],
        kept=store.kept,
        failures=failures.counts(),
    )
