"""The status of mounts, of containerds and of lazyfsd itself, for `lazyfs status`, `lazyfs store` and the metrics.

Sizes are in bytes. Fields that an earlier lazyfsd does not send have defaults.
"""

from __future__ import annotations

from typing import Final

import msgspec

BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds. The last one is that of gate.LOOKUP_TIMEOUT: a miss that takes longer is answered with an entry."""


class LayerStatus(msgspec.Struct, frozen=True):
    """One layer of a mount."""

    digest: str
    size: int
    """Of the blob."""
    reason: str
    """Why it is not lazy; empty if it is."""


class MountStatus(msgspec.Struct, frozen=True):
    """The status of one mount."""

    directory: str
    image: str
    pid: int
    store: str
    background: str
    complete: bool
    """Everything is in the store: the registry is no longer needed."""
    missing_chunks: int
    missing_bytes: int
    """Uncompressed."""
    total_bytes: int
    layers: int
    layer_bytes: int
    """Compressed size of all layers: what a full pull transfers."""
    requests: int
    received_bytes: int
    """Compressed bytes of chunks that this process has fetched."""
    chunks: int
    unkept: int
    damaged: int
    errors: dict[str, int]
    trouble: str
    """Why the background fetch makes no progress, or why the mount does not work; else empty."""
    mode: str = "portable"
    upper: str = ""
    """The writable directory of a native mount that has one."""
    layer_states: tuple[LayerStatus, ...] = ()
    """One for each layer, the lowest first."""
    published: int = 0
    """Misses that were answered by publishing the file. This and the next three: native mounts only, all mounts of this lazyfsd since its start."""
    entries: int = 0
    """Misses that were answered with an entry of the gate: those files are read through FUSE for a while."""
    reads: int = 0
    """Reads through FUSE."""
    kept: int = 0
    """Chunks that were put into the store."""
    failures: dict[str, int] = {}
    """How many tasks of the process have failed, by kind (lazyfs/tasks.py)."""


class RefusedLayer(msgspec.Struct, frozen=True):
    """A layer that could not be lazy, so that containerd unpacked it."""

    key: str
    """Of its snapshot."""
    reason: str


class LazyStatus(msgspec.Struct, frozen=True):
    """A lazy layer."""

    reference: str
    """Where its blob is: `docker://HOST/REPO`."""
    digest: str
    size: int
    """Of the blob."""
    uses: int
    """Mounted roots on it, and its pull; 0 if it only exists."""
    trouble: str
    """Why missing parts cannot be fetched; empty if they can."""


class ContainerdStatus(msgspec.Struct, frozen=True):
    """One containerd."""

    name: str
    snapshots: int
    active: int
    views: int
    roots: int
    """Overlays that lazyfsd has mounted for active snapshots and views."""
    lazy: tuple[LazyStatus, ...]
    """Each layer once, also if it has several snapshots."""
    unpacked: int
    refused: tuple[RefusedLayer, ...]
    """Of the unpacked ones: those that could not be lazy."""
    trouble: str = ""
    """Why it is not served; empty if it is. If set, the other fields are empty."""


class RepositoryStatus(msgspec.Struct, frozen=True):
    """A repository that is in use, or was a moment ago."""

    name: str
    requests: int
    received: int
    """Compressed bytes of chunks."""
    chunks: int
    unkept: int
    errors: dict[str, int]
    trouble: str


class LatencyStatus(msgspec.Struct, frozen=True):
    """How long misses took until their file was published."""

    counts: tuple[int, ...]
    """Misses of at most BOUNDS[i] seconds, and more than the bound before; the last one: more than all bounds."""
    seconds: float
    """The sum of all."""

    @property
    def count(self) -> int:
        """The number of all."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The lowest bound that at least `share` of the misses did not exceed; infinite if there is none, 0 without misses."""
        left = share * self.count
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            left -= count
            if left <= 0:
                return bound if self.count else 0.0
        return float("inf")


class GateStatus(msgspec.Struct, frozen=True):
    """What the gate has answered since lazyfsd started."""

    published: int
    """Misses answered by publishing the file."""
    entries: int
    """Misses answered with an entry of the gate."""
    late: int
    """Misses whose file did not arrive in time to be published."""
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
    """The limit of the store; 0 means none."""
    durable: bool
    """Everything that has arrived is synced."""
    evicted_objects: int
    """Since lazyfsd started, as the counters below."""
    evicted_bytes: int
    scrubbed_bytes: int
    scrub_damaged: int


class ServiceStatus(msgspec.Struct, frozen=True):
    """One lazyfsd: the answer to a status order."""

    pid: int
    mounts: tuple[MountStatus, ...]
    """The mounts that the order selects."""
    store: StoreStatus
    gate: GateStatus
    containerds: tuple[ContainerdStatus, ...]
    repositories: tuple[RepositoryStatus, ...]
    """Those that lazy layers of containerds are fetched from."""
    failures: dict[str, int] = {}
    """How many tasks of lazyfsd have failed, by kind."""
