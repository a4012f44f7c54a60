"""containerd's end of the snapshots service: each call as its proxy for snapshotters makes it, in values of our own.

Source: containerd, core/snapshots/proxy/proxy.go. Refusals come out as they are, `grpc.RpcError`; `refused` expects one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self, cast

import grpc
import pytest

from lazyfs.api.services.snapshots.v1 import snapshots_pb2 as messages
from lazyfs.api.services.snapshots.v1 import snapshots_pb2_grpc as services

PATIENCE_S = 60
_KINDS = {messages.VIEW: "view", messages.ACTIVE: "active", messages.COMMITTED: "committed"}


class Mount(NamedTuple):
    """The mount that containerd is to make."""

    type: str
    source: str
    options: tuple[str, ...]

    def option(self, name: str) -> str:
        """The value of an option `NAME=VALUE`; empty where it is not there."""
        return next((each.partition("=")[2] for each in self.options if each.startswith(f"{name}=")), "")


class Info(NamedTuple):
    """What containerd knows of a snapshot."""

    key: str
    parent: str
    kind: str
    labels: dict[str, str]
    created_ns: int
    updated_ns: int


class Usage(NamedTuple):
    """What a snapshot takes on disk."""

    inodes: int
    size: int


class SnapshotsClient:
    """A connection to the snapshotter at a unix socket."""

    def __init__(self, socket: Path, name: str = "lazyfs", *, patience: float = PATIENCE_S) -> None:
        """A call fails that has no answer after `patience` seconds."""
        self._name = name
        self._patience = patience
        # No proxy of the environment, and no second try: a call that fails is what a test wants to see.
        # Nor does it know of what an earlier client at this socket has met.
        options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options)
        self._calls = services.SnapshotsStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called again."""
        self._channel.close()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = messages.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return _mounts(self._calls.Prepare(request, timeout=self._patience))

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = messages.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return _mounts(self._calls.View(request, timeout=self._patience))

    def mounts(self, key: str) -> list[Mount]:
        return _mounts(self._calls.Mounts(messages.MountsRequest(snapshotter=self._name, key=key), timeout=self._patience))

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        request = messages.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key, labels=labels)
        self._calls.Commit(request, timeout=self._patience)

    def remove(self, key: str) -> None:
        self._calls.Remove(messages.RemoveSnapshotRequest(snapshotter=self._name, key=key), timeout=self._patience)

    def stat(self, key: str) -> Info:
        request = messages.StatSnapshotRequest(snapshotter=self._name, key=key)
        return _info(self._calls.Stat(request, timeout=self._patience).info)

    def update(self, key: str, labels: Mapping[str, str], *fieldpaths: str, parent: str = "") -> Info:
        """`parent` is what a client says besides; it must not matter."""
        request = messages.UpdateSnapshotRequest(snapshotter=self._name)
        request.info.CopyFrom(messages.Info(name=key, parent=parent, labels=labels))
        request.update_mask.paths.extend(fieldpaths)
        return _info(self._calls.Update(request, timeout=self._patience).info)

    def pages(self, *filters: str) -> Iterator[list[Info]]:
        """As they come: the call goes on while the caller looks at one."""
        request = messages.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        for page in self._calls.List(request, timeout=self._patience):
            yield [_info(info) for info in page.info]

    def walk(self, *filters: str) -> Iterator[Info]:
        """All that any of the filters lets through."""
        return (info for page in self.pages(*filters) for info in page)

    def usage(self, key: str) -> Usage:
        found = self._calls.Usage(messages.UsageRequest(snapshotter=self._name, key=key), timeout=self._patience)
        return Usage(found.inodes, found.size)

    def cleanup(self) -> None:
        self._calls.Cleanup(messages.CleanupRequest(snapshotter=self._name), timeout=self._patience)


@contextmanager
def refused(status: grpc.StatusCode, pattern: str = "") -> Iterator[None]:
    """The call inside ends with this status, and says something that `pattern` is found in."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = cast("grpc.Call", caught.value)
    assert error.code() == status, error.details()
    assert re.search(pattern, error.details() or "")


def _mounts(
    answer: messages.PrepareSnapshotResponse | messages.ViewSnapshotResponse | messages.MountsResponse,
) -> list[Mount]:
    return [Mount(mount.type, mount.source, tuple(mount.options)) for mount in answer.mounts]


def _info(info: messages.Info) -> Info:
    times = info.created_at.ToNanoseconds(), info.updated_at.ToNanoseconds()
    return Info(info.name, info.parent, _KINDS[info.kind], dict(info.labels), *times)
