"""Checks whether a snapshotter answers at its socket, by a call as containerd would make it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc

from lazyfs.api.services.snapshots.v1 import snapshots_pb2 as messages
from lazyfs.api.services.snapshots.v1 import snapshots_pb2_grpc as services

_KEY: Final = "lazyfs/does-it-answer"


class Probe:
    """One connection for many probes. Blocking, thread-safe."""

    def __init__(self, socket: Path) -> None:
        """Makes no call yet."""
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._stub = services.SnapshotsStub(self._channel)

    def ask(self, deadline: float) -> str:
        """Why there is no answer within `deadline` seconds; empty if there is one."""
        try:
            self._stub.Stat(messages.StatSnapshotRequest(key=_KEY), timeout=deadline)
        except grpc.RpcError as error:
            known = error.code() == grpc.StatusCode.NOT_FOUND
            return "" if known else f"{error.code().name.lower()}: {error.details()}"
        return ""

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
