"""The lease of a pull: it keeps what the pull creates until the image's record does.

It expires after a day, as that of containerd's own client. A successful pull deletes its lease, and those that dead pulls of the same image
left behind. A failed pull that can be resumed leaves its lease, so that the next one finds what has arrived. Whether a pull is alive
shows in a name in the abstract namespace of unix sockets: the kernel frees it when its owner dies.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from lazyfs.api.services.leases.v1 import leases_pb2
from lazyfs.errors import ContainerdFailed, LazyfsError, SourceError, most_severe
from lazyfs.pull.containerd import DEADLINE, Containerd

_DURATION: Final = timedelta(days=1)
_EXPIRES: Final = "containerd.io/gc.expire"
_IMAGE: Final = "lazyfs.image"


@asynccontextmanager
async def leased(containerd: Containerd, image: str) -> AsyncIterator[None]:
    """Inside the block, what `containerd` creates is kept. Raises ContainerdFailed."""
    identity = f"lazyfs-pull-{secrets.token_hex(8)}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as liveness:
        liveness.bind(_liveness_name(identity))
        expires = (datetime.now(UTC) + _DURATION).strftime("%Y-%m-%dT%H:%M:%SZ")
        request = leases_pb2.CreateRequest(id=identity, labels={_EXPIRES: expires, _IMAGE: image})
        await containerd.call(containerd.leases.Create, request)
        containerd.lease = identity
        try:
            yield
        except BaseException as error:
            containerd.lease = ""
            if not _resumable(error):
                with trio.move_on_after(DEADLINE, shield=True), suppress(ContainerdFailed):
                    await _delete(containerd, identity, collect=True)
            raise
        containerd.lease = ""
        with suppress(ContainerdFailed):  # leases expire: one that stays is not worth a failed pull
            await _delete(containerd, identity)
            for left in await _abandoned(containerd, image):
                await _delete(containerd, left, collect=True)


async def hold_snapshot(containerd: Containerd, snapshotter: str, key: str) -> None:
    """Keep an existing snapshot: containerd leases only what the pull creates. Raises ContainerdFailed."""
    resource = leases_pb2.Resource(id=key, type=f"snapshots/{snapshotter}")
    await containerd.call(containerd.leases.AddResource, leases_pb2.AddResourceRequest(id=containerd.lease, resource=resource))


def _resumable(error: BaseException) -> bool:
    """Whether another pull can use what has arrived: this one failed by the registry, the user, or a stop of containerd."""
    cause = most_severe(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(cause, ContainerdFailed):
        return cause.status == "UNAVAILABLE"
    return isinstance(cause, SourceError) or not isinstance(cause, LazyfsError)


async def _delete(containerd: Containerd, identity: str, *, collect: bool = False) -> None:
    """`collect`: run the garbage collector now, because the lease kept garbage."""
    request = leases_pb2.DeleteRequest(id=identity, sync=collect)
    await containerd.call_unless("NOT_FOUND", containerd.leases.Delete, request)


async def _abandoned(containerd: Containerd, image: str) -> list[str]:
    filters = [f'labels."{_IMAGE}"=="{image}"']
    answer = await containerd.call(containerd.leases.List, leases_pb2.ListRequest(filters=filters))
    return [lease.id for lease in answer.leases if not _is_alive(lease.id)]


def _is_alive(identity: str) -> bool:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.bind(_liveness_name(identity))
        except OSError:
            return True
    return False


def _liveness_name(identity: str) -> bytes:
    return b"\0" + identity.encode()
