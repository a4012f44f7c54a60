"""The state of mounts, of containerds, and of lazyfsd itself, as `lazyfs status`, `lazyfs store` and the metrics show it.

Sizes are in bytes. A field that an earlier lazyfsd does not send has a default.
"""

from __future__ import annotations

from typing import Final

import msgspec

BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds. The last one is that of gate.LOOKUP_TIMEOUT: what takes longer is answered with an entry."""


class LayerStatus(msgspec.Struct, frozen=True):
    """One layer of a mount."""

    digest: str
    size: int
    """Of the blob."""
    reason: str
    """Why it is not lazy; empty for one that is."""


class MountStatus(msgspec.Struct, frozen=True):
    """The state of one mount."""

    directory: str
    image: str
    pid: int
    store: str
    background: str
    complete: bool
    """Everything is here: neither registry nor network is needed any more."""
    missing_chunks: int
    missing_bytes: int
    """Uncompressed."""
    total_bytes: int
    layers: int
    layer_bytes: int
    """What a full pull moves: the layers' compressed sizes."""
    requests: int
    received_bytes: int
    """Compressed bytes of chunks that this process has fetched."""
    chunks: int
    unkept: int
    damaged: int
    errors: dict[str, int]
    trouble: str
    """Why the background fetch stands still, if it does, or why the mount does not work."""
    mode: str = "portable"
    upper: str = ""
    """The writable directory of a native mount that has one."""
    layer_states: tuple[LayerStatus, ...] = ()
    """Of each layer, the lowest first."""
    published: int = 0
    """Native, here and below: of all mounts of this lazyfsd since it began. Misses that it answered by putting the file in its place."""
    entries: int = 0
    """Misses that it answered with an entry of the gate: those files are read through FUSE for a while."""
    reads: int = 0
    """Reads through FUSE."""
    kept: int = 0
    """Chunks that it has put into the store."""
    failures: dict[str, int] = {}
    """Tasks of its process that have failed, by what they do (lazyfs/tasks.py)."""


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
    """The blob's."""
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


class LatencyStatus(msgspec.Struct, frozen=True):
    """How long misses took until their file was in place."""

    counts: tuple[int, ...]
    """How many took at most BOUNDS[i], and longer than the bound before; the last one, longer than all."""
    seconds: float
    """All of them together."""

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The bound that at least `share` of them did not take longer than; infinite where none is. 0 where nothing was counted."""
        left = share * self.count
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            left -= count
            if left <= 0:
                return bound if self.count else 0.0
        return float("inf")


class GateStatus(msgspec.Struct, frozen=True):
    """What lazyfsd's gate has answered since lazyfsd began."""

    published: int
    """Misses answered by putting the file in its place."""
    entries: int
    """Misses answered with an entry of the gate."""
    late: int
    """Misses whose file did not arrive in time to be put in its place."""
    reads: int
    """Reads through the gate."""
    errors: int
    latency: LatencyStatus


class StoreStatus(msgspec.Struct, frozen=True):
    """The store of one lazyfsd."""

    used_bytes: int
    held_bytes: int
    """Of removed files that are still open or mounted."""
    limit_bytes: int
    """What the store may take; 0 means no limit."""
    durable: bool
    """Everything that has arrived survives a power cut."""
    evicted_objects: int
    """Since lazyfsd began, as the counters below."""
    evicted_bytes: int
    scrubbed_bytes: int
    scrub_damaged: int


class ServiceStatus(msgspec.Struct, frozen=True):
    """One lazyfsd: the answer to a status order."""

    pid: int
    mounts: tuple[MountStatus, ...]
    """Those that were asked for."""
    store: StoreStatus
    gate: GateStatus
    containerds: tuple[ContainerdStatus, ...]
    repositories: tuple[RepositoryStatus, ...]
    """Of lazy layers in containerds."""
    failures: dict[str, int] = {}
    """Tasks of lazyfsd that have failed, by what they do."""
