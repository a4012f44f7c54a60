"""Creates the snapshots of an image's layers, one on the other: lazy if the snapshotter can, else unpacked by containerd.

A Prepare names the layer and its blob. A snapshotter that does not need the blob answers AlreadyExists. Otherwise it answers with mounts to
unpack into: then the blob is written to the content store, and containerd's diff service unpacks it. The steps and names are those of
containerd's unpacker.go.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

import trio

from lazyfs.api.services.diff.v1 import diff_pb2
from lazyfs.api.services.snapshots.v1 import snapshots_pb2
from lazyfs.api.types import descriptor_pb2, mount_pb2
from lazyfs.errors import ContainerdFailed, DigestMismatch
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor
from lazyfs.image.image import Image
from lazyfs.pull.containerd import DEADLINE, Containerd
from lazyfs.pull.content import Content
from lazyfs.pull.downloads import Downloads
from lazyfs.pull.labels import UNCOMPRESSED, chain_ids, layer_labels, not_lazy
from lazyfs.pull.lease import hold_snapshot
from lazyfs.snapshots.labels import REASON, REMOTE, TARGET

_PREPARE_DEADLINE: Final = 120.0
"""Seconds; the snapshotter's own deadline is much shorter."""
_UNPACK_DEADLINE: Final = 3600.0
"""Seconds; also for Commit, which syncs the unpacked files."""
_TRIES: Final = 6
_PAUSE: Final = 1.0
"""Seconds. containerd reconnects to a snapshotter within 3 s."""

T = TypeVar("T")


class PulledLayer(NamedTuple):
    """The result for one layer."""

    digest: Digest
    size: int
    """Bytes of the blob."""
    chain_id: Digest
    reason: str
    """Why it is not lazy; `""` if it is. Completes a sentence that begins with the layer."""


class Layers:
    """The layers of one image in one snapshotter."""

    def __init__(self, containerd: Containerd, snapshotter: str, name: str, image: Image, downloads: Downloads) -> None:
        self._containerd = containerd
        self._service = containerd.snapshots
        self._content = Content(containerd)
        self._snapshotter = snapshotter
        self._name = name
        self._image = image
        self._downloads = downloads
        self._chain = chain_ids(image.config.diff_ids)

    async def download_ahead(self) -> None:
        """Start to download the blobs of layers that must be unpacked. Raises ContainerdFailed."""
        for layer, chain_id in zip(self._image.layers, self._chain, strict=True):
            if not_lazy(layer) and await self._with_retries(partial(self._stat, chain_id)) is None:
                self._downloads.begin(layer)

    async def make(self, number: int) -> PulledLayer:
        """Create the snapshot of layer `number`; those below it must exist. Raises LazyfsError."""
        layer = self._image.layers[number]
        info = await self._with_retries(partial(self._make, number))
        return PulledLayer(layer.digest, layer.size, self._chain[number], _reason(layer, info.labels))

    async def _with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat calls that fail with Unavailable: a call in flight does while a new lazyfsd takes over."""
        for left in reversed(range(_TRIES)):
            try:
                return await call()
            except ContainerdFailed as error:
                if error.status != "UNAVAILABLE":
                    raise
                if not left:
                    hint = "Is lazyfsd running? See its log"
                    raise ContainerdFailed(f"the snapshotter {self._snapshotter} fails ({error.message})", hint=hint) from error
            await trio.sleep(_PAUSE)
        raise AssertionError("the last try returns or raises")

    async def _make(self, number: int) -> snapshots_pb2.Info:
        chain_id = self._chain[number]
        for _ in range(_TRIES):
            if await self._stat(chain_id) is not None:
                await hold_snapshot(self._containerd, self._snapshotter, chain_id)
            else:
                await self._prepare(number)
            # Only now is it certain that the garbage collector has not removed it in between.
            info = await self._stat(chain_id)
            if info is not None:
                return info
        raise ContainerdFailed(f"containerd says that it has the snapshot {chain_id}, and does not find it")

    async def _prepare(self, number: int) -> None:
        """Prepare the snapshot, and unpack the layer if it is not lazy. Raises LazyfsError. Failed or cancelled: only the blob is left."""
        chain_id = self._chain[number]
        key = f"extract-{time.time_ns() % 10**9}-{secrets.token_hex(3)} {chain_id}"
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self._snapshotter,
            key=key,
            parent=self._chain[number - 1] if number else "",
            labels=layer_labels(self._name, self._image.digest, self._image.layers, number, chain_id),
        )
        try:
            answer = await self._containerd.call_unless(
                "ALREADY_EXISTS", self._service.Prepare, request, deadline=_PREPARE_DEADLINE
            )
            if answer is not None:
                await self._unpack(number, key, answer.mounts)
        except BaseException:
            with trio.move_on_after(DEADLINE, shield=True):
                await self._remove(key)
            raise

    async def _unpack(self, number: int, key: str, mounts: Sequence[mount_pb2.Mount]) -> None:
        layer, chain_id, diff_id = self._image.layers[number], self._chain[number], self._image.config.diff_ids[number]
        await self._downloads.begin(layer).wait()
        # containerd detects compression by the first bytes, unless the type is that of a plain tar.
        kind = OCI_LAYER_GZIP if layer.media_type == OCI_LAYER_TAR else layer.media_type
        blob = descriptor_pb2.Descriptor(media_type=kind, digest=layer.digest, size=layer.size)
        request = diff_pb2.ApplyRequest(diff=blob, mounts=mounts)
        answer = await self._containerd.call(self._containerd.diff.Apply, request, deadline=_UNPACK_DEADLINE)
        if answer.applied.digest != diff_id:
            raise DigestMismatch(
                f"layer {layer.digest} unpacks to {answer.applied.digest}, and the config's diff ID is {diff_id}"
            )
        labels = {TARGET: chain_id}
        commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=self._snapshotter, name=chain_id, key=key, labels=labels)
        if await self._containerd.call_unless("ALREADY_EXISTS", self._service.Commit, commit, deadline=_UNPACK_DEADLINE) is None:
            await self._remove(key)
        await self._content.label(layer.digest, lambda _: {UNCOMPRESSED: diff_id})

    async def _remove(self, key: str) -> None:
        """Remove a snapshot. Errors are ignored: it goes with the lease at the latest."""
        with suppress(ContainerdFailed):
            request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self._snapshotter, key=key)
            await self._containerd.call(self._service.Remove, request)

    async def _stat(self, key: str) -> snapshots_pb2.Info | None:
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self._snapshotter, key=key)
        answer = await self._containerd.call_unless("NOT_FOUND", self._service.Stat, request)
        return answer.info if answer else None


def _reason(layer: Descriptor, labels: Mapping[str, str]) -> str:
    """Why a layer is not lazy, by the labels of its snapshot."""
    if REMOTE in labels:
        return ""
    noted = labels.get(REASON, "").removeprefix(f"{layer.digest} ")
    return not_lazy(layer) or noted or "was unpacked before"
