"""A client of containerd's services, which turns gRPC errors into ContainerdFailed.

grpcio's own threads make the calls and trio waits for them: cancelling the wait cancels the call.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self, TypeVar, cast

import grpc
import trio

from lazyfs.api.services.content.v1.content_pb2_grpc import ContentStub
from lazyfs.api.services.diff.v1.diff_pb2_grpc import DiffStub
from lazyfs.api.services.images.v1.images_pb2_grpc import ImagesStub
from lazyfs.api.services.introspection.v1 import introspection_pb2
from lazyfs.api.services.introspection.v1.introspection_pb2_grpc import IntrospectionStub
from lazyfs.api.services.leases.v1.leases_pb2_grpc import LeasesStub
from lazyfs.api.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub
from lazyfs.errors import ContainerdFailed, UsageError, show

DEADLINE: Final = 60.0
"""Seconds for a call that needs neither the network nor much disk I/O."""
_CONNECT_TIMEOUT: Final = 10.0
_MAX_MESSAGE: Final = 16 << 20
"""Bytes; containerd's own limit."""
_MAX_DETAILS: Final = 500
_NAMES = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*\Z")
"""Source: containerd, identifiers/validate.go."""
_PLUGIN: Final = "io.containerd.snapshotter.v1"

Q = TypeVar("Q")
A = TypeVar("A")


class Containerd:
    """A connection to containerd in one namespace. A context manager; not thread-safe."""

    def __init__(self, address: Path, namespace: str) -> None:
        """Raises ContainerdFailed if nothing listens at `address`, UsageError for an invalid namespace."""
        if not _NAMES.match(namespace):
            raise UsageError(f"{show(namespace)} is not a containerd namespace")
        self.address = address
        self.namespace = namespace
        self.lease = ""
        """What is created while it is set is kept until that lease is deleted."""
        _check_socket(address)
        options = (
            # No HTTP proxy for a unix socket; the callers decide what is retried.
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
        )
        self._channel = grpc.insecure_channel(f"unix:{address}", options)
        self.content = ContentStub(self._channel)
        self.diff = DiffStub(self._channel)
        self.images = ImagesStub(self._channel)
        self.leases = LeasesStub(self._channel)
        self.snapshots = SnapshotsStub(self._channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        found = (("containerd-namespace", self.namespace),)
        return (*found, ("containerd-lease", self.lease)) if self.lease else found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in progress end. Blocking."""
        self._channel.close()

    async def call(self, method: grpc.UnaryUnaryMultiCallable[Q, A], request: Q, *, deadline: float = DEADLINE) -> A:
        """The response to one request. Raises ContainerdFailed. Cancelled: containerd may have executed it."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake(_: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        with refusals():
            future = method.future(request, timeout=deadline, metadata=self.metadata)
            try:
                future.add_done_callback(wake)
                await done.wait()
                return future.result()
            finally:
                future.cancel()

    async def call_unless(
        self, status: str, method: grpc.UnaryUnaryMultiCallable[Q, A], request: Q, *, deadline: float = DEADLINE
    ) -> A | None:
        """As `call`; None if containerd answers with that status."""
        try:
            return await self.call(method, request, deadline=deadline)
        except ContainerdFailed as error:
            if error.status != status:
                raise
            return None

    async def check_snapshotter(self, name: str) -> None:
        """Raises ContainerdFailed if containerd does not have the snapshotter, UsageError for an invalid name."""
        if not _NAMES.match(name):
            raise UsageError(f"{show(name)} is not a snapshotter's name")
        request = introspection_pb2.PluginsRequest(filters=[f"type=={_PLUGIN}"])
        answer = await self.call(IntrospectionStub(self._channel).Plugins, request, deadline=_CONNECT_TIMEOUT)
        found = {plugin.id: plugin for plugin in answer.plugins}
        if name not in found:
            others = sorted(each for each, plugin in found.items() if not plugin.HasField("init_err"))
            raise ContainerdFailed(
                f"the containerd at {self.address} has no snapshotter {show(name)}; it has {_clean(', '.join(others)) or 'none'}",
                hint=f"Add [proxy_plugins.{name}] to its config.toml and restart it: lazyfs doctor says what is missing",
            )
        if found[name].HasField("init_err"):
            raise ContainerdFailed(
                f"containerd's snapshotter {show(name)} does not work: {_clean(found[name].init_err.message)}",
                hint="See containerd's log",
            )


@contextmanager
def refusals() -> Iterator[None]:
    """Raise gRPC errors as ContainerdFailed."""
    try:
        yield
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # what a call raises is the call itself
        status = call.code()
        details = _clean(call.details() or status.name)
        hint = "See containerd's log" if status in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL} else ""
        raise ContainerdFailed(f"containerd: {details}", hint=hint, status=status.name) from error


def _check_socket(address: Path) -> None:
    """Connect once for a clear error: gRPC would retry, and finally report only that it failed."""
    hint = "Name its socket with --address"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT)
        try:
            probe.connect(str(address))
        except PermissionError as error:
            raise ContainerdFailed(f"{address} may not be opened", hint="containerd serves root alone: try with sudo") from error
        except FileNotFoundError as error:
            raise ContainerdFailed(
                f"there is no containerd at {address}", hint=f"Start it, or {hint[0].lower()}{hint[1:]}"
            ) from error
        except OSError as error:
            raise ContainerdFailed(f"no containerd answers at {address}: {error.strerror or error}", hint=hint) from error


def _clean(text: str) -> str:
    """Foreign text without control characters, cut."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_DETAILS]).strip()
