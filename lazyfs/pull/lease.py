"""The lease of a pull: until the image's record keeps it, what has been brought is kept by this.

It expires after a day, as that of containerd's own client. A pull that ends well deletes it, and those that dead pulls of the same image
left behind. One that fails where another try would go on leaves it, for that one to find things. Which pull lives is seen by a
name in the abstract name space of unix sockets: it is free again as soon as its owner is dead, however he died.
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
    """Inside, what `containerd` is asked to make stays. Raises ContainerdFailed."""
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
        with suppress(ContainerdFailed):  # they expire by themselves: one that stays fails no pull
            await _delete(containerd, identity)
            for left in await _abandoned(containerd, image):
                await _delete(containerd, left, collect=True)


async def hold_snapshot(containerd: Containerd, snapshotter: str, key: str) -> None:
    """Keep a snapshot that was there already: only what a pull makes itself is leased by containerd. Raises ContainerdFailed."""
    resource = leases_pb2.Resource(id=key, type=f"snapshots/{snapshotter}")
    await containerd.call(containerd.leases.AddResource, leases_pb2.AddResourceRequest(id=containerd.lease, resource=resource))


def _resumable(error: BaseException) -> bool:
    """Whether the next try has a use for what has arrived: the registry or the user ended this one, or containerd went away."""
    cause = most_severe(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(cause, ContainerdFailed):
        return cause.status == "UNAVAILABLE"
    return isinstance(cause, SourceError) or not isinstance(cause, LazyfsError)


async def _delete(containerd: Containerd, identity: str, *, collect: bool = False) -> None:
    """`collect`: what it has kept is garbage, and containerd might not look for any for a long time."""
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
