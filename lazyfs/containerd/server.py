"""containerd's snapshots service, backed by a Snapshotter.

grpcio's server has its own threads; each call enters trio through its token and waits there. An error of a call becomes a gRPC status, which
containerd acts on: AlreadyExists from a Prepare means that the layer is lazy.

Source: containerd, api/services/snapshots/v1/snapshots.proto and core/snapshots/proxy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import grpc
import trio
from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from lazyfs.api.services.snapshots.v1 import snapshots_pb2 as messages
from lazyfs.api.services.snapshots.v1 import snapshots_pb2_grpc as services
from lazyfs.api.types import mount_pb2
from lazyfs.containerd.mounts import MountSpec
from lazyfs.containerd.snapshotter import Snapshotter
from lazyfs.errors import (
    BadSnapshot,
    LazyfsError,
    SnapshotBusy,
    SnapshotExists,
    SnapshotNotFound,
    StoreFull,
)
from lazyfs.snapshots.labels import REASON
from lazyfs.snapshots.snapshot import Snapshot
from lazyfs.tasks import Failures, cause_of

_THREADS: Final = 128
"""Concurrent calls. Threads are created on demand. If so many Prepares wait for a silent registry, a Remove waits behind them."""
_GRACE: Final = 5.0
_MAX_MESSAGE: Final = 16 << 20
_MAX_REASON: Final = 1000
_STATUS: Final = (
    (SnapshotExists, grpc.StatusCode.ALREADY_EXISTS),
    (SnapshotNotFound, grpc.StatusCode.NOT_FOUND),
    (SnapshotBusy, grpc.StatusCode.FAILED_PRECONDITION),
    (BadSnapshot, grpc.StatusCode.INVALID_ARGUMENT),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
)
_KIND: Final = {"view": messages.VIEW, "active": messages.ACTIVE, "committed": messages.COMMITTED}
T = TypeVar("T")


@asynccontextmanager
async def serve_snapshotter(snapshotter: Snapshotter, socket: Path, failures: Failures) -> AsyncIterator[None]:
    """Serve at a unix socket inside the block; calls in progress get _GRACE seconds at its end. Raises RuntimeError if it cannot listen."""
    service = _Service(snapshotter, trio.lowlevel.current_trio_token(), failures)
    async with _grpc_server(partial(services.add_SnapshotsServicer_to_server, service), _THREADS, socket):
        yield


@asynccontextmanager
async def serve_refusals(reason: str, socket: Path) -> AsyncIterator[None]:
    """As `serve_snapshotter`, for a containerd whose snapshots cannot be used: every call fails with `reason`."""
    async with _grpc_server(lambda server: server.add_generic_rpc_handlers((_Refusing(reason),)), 1, socket):
        yield


@asynccontextmanager
async def _grpc_server(add: Callable[[grpc.Server], None], threads: int, socket: Path) -> AsyncIterator[None]:
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="lazyfs-grpc"),
        options=[("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.so_reuseport", 0)],
    )
    add(server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.stop(_GRACE).wait)


class _Service(services.SnapshotsServicer):
    """The calls of one containerd."""

    def __init__(self, snapshotter: Snapshotter, token: trio.lowlevel.TrioToken, failures: Failures) -> None:
        self._snapshotter = snapshotter
        self._token = token
        self._failures = failures

    def Prepare(
        self, request: messages.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> messages.PrepareSnapshotResponse:
        call = partial(self._snapshotter.prepare, request.key, request.parent, dict(request.labels))
        return messages.PrepareSnapshotResponse(mounts=map(_mount, self._enter(call, context)))

    def View(self, request: messages.ViewSnapshotRequest, context: grpc.ServicerContext) -> messages.ViewSnapshotResponse:
        call = partial(self._snapshotter.prepare, request.key, request.parent, dict(request.labels), "view")
        return messages.ViewSnapshotResponse(mounts=map(_mount, self._enter(call, context)))

    def Mounts(self, request: messages.MountsRequest, context: grpc.ServicerContext) -> messages.MountsResponse:
        call = partial(self._snapshotter.mounts, request.key)
        return messages.MountsResponse(mounts=map(_mount, self._enter(call, context)))

    def Commit(self, request: messages.CommitSnapshotRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter(partial(self._snapshotter.commit, request.key, request.name, dict(request.labels)), context)
        return empty_pb2.Empty()

    def Remove(self, request: messages.RemoveSnapshotRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter(partial(self._snapshotter.remove, request.key), context)
        return empty_pb2.Empty()

    def Stat(self, request: messages.StatSnapshotRequest, context: grpc.ServicerContext) -> messages.StatSnapshotResponse:
        return messages.StatSnapshotResponse(info=_info(self._enter(partial(self._snapshotter.stat, request.key), context)))

    def Update(self, request: messages.UpdateSnapshotRequest, context: grpc.ServicerContext) -> messages.UpdateSnapshotResponse:
        paths = list(request.update_mask.paths)
        call = partial(self._snapshotter.update, request.info.name, dict(request.info.labels), paths)
        return messages.UpdateSnapshotResponse(info=_info(self._enter(call, context)))

    def List(
        self, request: messages.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.ListSnapshotsResponse]:
        try:
            for page in self._snapshotter.pages(list(request.filters)):
                yield messages.ListSnapshotsResponse(info=map(_info, page))
        except LazyfsError as error:
            _refuse(error, context)

    def Usage(self, request: messages.UsageRequest, context: grpc.ServicerContext) -> messages.UsageResponse:
        found = self._enter(partial(self._snapshotter.usage, request.key), context)
        return messages.UsageResponse(size=found.size, inodes=found.inodes)

    def Cleanup(self, request: messages.CleanupRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._enter(self._snapshotter.cleanup, context)
        return empty_pb2.Empty()

    def _enter(self, call: Callable[[], Awaitable[T]], context: grpc.ServicerContext) -> T:
        """Run a call in trio. Every exception becomes a status; the daemon goes on."""
        try:
            return trio.from_thread.run(call, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            context.abort(grpc.StatusCode.UNAVAILABLE, "lazyfsd is stopping")
        except Exception as surprise:  # noqa: BLE001
            error = cause_of(surprise)
            if isinstance(error, LazyfsError):
                _refuse(error, context)
            self._failures.record("call of containerd", surprise)
            context.abort(grpc.StatusCode.INTERNAL, f"lazyfsd failed: {error!r}; its log has the traceback")


class _Refusing(grpc.GenericRpcHandler):
    """Refuses every call."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, _: bytes, context: grpc.ServicerContext) -> NoReturn:
        context.abort(grpc.StatusCode.UNAVAILABLE, self._reason)


def _refuse(error: LazyfsError, context: grpc.ServicerContext) -> NoReturn:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.UNAVAILABLE)
    context.abort(status, str(error))


def _mount(mount: MountSpec) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def _info(snapshot: Snapshot) -> messages.Info:
    return messages.Info(
        name=snapshot.key,
        parent=snapshot.parent,
        kind=_KIND[snapshot.kind],
        created_at=_time(snapshot.created_ns),
        updated_at=_time(snapshot.updated_ns),
        labels={**snapshot.labels, REASON: snapshot.reason[:_MAX_REASON]} if snapshot.reason else snapshot.labels,
    )


def _time(nanoseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromNanoseconds(nanoseconds)
    return time
