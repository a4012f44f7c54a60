"""containerd's content store as a pull meets it: in memory, behind a real gRPC socket, with the rules of its Write."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grpc
from google.protobuf import empty_pb2

from lazyfs.api.services.content.v1 import content_pb2 as messages
from lazyfs.api.services.content.v1 import content_pb2_grpc as services
from lazyfs.format.digest import digest_of


class ContentStore(services.ContentServicer):
    """`blobs` and `labels` by digest, `ingests` by name; `locked` holds the names that another client writes."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.ingests: dict[str, bytes] = {}
        self.locked: set[str] = set()
        self.others = b""
        """What the one who holds the locks writes: a hundredth whenever somebody looks how far he is."""
        self.writes: list[tuple[int, int]] = []
        """Offset and length of each part that was written."""
        self.leases: set[str] = set()
        """Of all calls."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self.address = Path(self._folder.name) / "socket"
        self._server = grpc.server(ThreadPoolExecutor(4))
        services.add_ContentServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.address}")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._folder.cleanup()

    def Info(self, request: messages.InfoRequest, context: grpc.ServicerContext) -> messages.InfoResponse:
        self._note(context)
        if request.digest not in self.blobs:
            context.abort(grpc.StatusCode.NOT_FOUND, "content: not found")
        return messages.InfoResponse(info=self._info(request.digest))

    def Update(self, request: messages.UpdateRequest, context: grpc.ServicerContext) -> messages.UpdateResponse:
        self._note(context)
        for path in request.update_mask.paths:
            key = path.removeprefix("labels.")
            self.labels[request.info.digest][key] = request.info.labels[key]
        return messages.UpdateResponse(info=self._info(request.info.digest))

    def Read(self, request: messages.ReadContentRequest, context: grpc.ServicerContext) -> Iterator[messages.ReadContentResponse]:
        self._note(context)
        data = self.blobs[request.digest]
        for start in range(0, len(data), 10):
            yield messages.ReadContentResponse(offset=start, data=data[start : start + 10])

    def Status(self, request: messages.StatusRequest, context: grpc.ServicerContext) -> messages.StatusResponse:
        if request.ref not in self.ingests:
            context.abort(grpc.StatusCode.NOT_FOUND, "ingest: not found")
        if self.others:
            self._get_on(request.ref)
        return messages.StatusResponse(status=messages.Status(ref=request.ref, offset=len(self.ingests[request.ref])))

    def Abort(self, request: messages.AbortRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        del self.ingests[request.ref]
        return empty_pb2.Empty()

    def Write(
        self, request_iterator: Iterator[messages.WriteContentRequest], context: grpc.ServicerContext
    ) -> Iterator[messages.WriteContentResponse]:
        self._note(context)
        name = ""
        try:
            for request in request_iterator:
                if not name:
                    name, expected, total = request.ref, request.expected, request.total
                    if expected in self.blobs:
                        context.abort(grpc.StatusCode.ALREADY_EXISTS, "content: already exists")
                    with self._lock:
                        if name in self.locked:
                            locked, name = name, ""
                            context.abort(grpc.StatusCode.UNAVAILABLE, f"ref {locked} locked: unavailable")
                        self.locked.add(name)
                    self.ingests.setdefault(name, b"")
                if request.action != messages.STAT:
                    self._put(name, request, context)
                if request.action == messages.COMMIT:
                    data = self.ingests[name]
                    if len(data) != total or digest_of(data) != expected:
                        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "unexpected commit digest")
                    self.blobs[expected], self.labels[expected] = data, dict(request.labels)
                    del self.ingests[name]
                yield messages.WriteContentResponse(action=request.action, offset=len(self.ingests.get(name, b"")))
        finally:
            self.locked.discard(name)

    def _get_on(self, name: str) -> None:
        there = self.ingests[name] = self.others[: len(self.ingests[name]) + len(self.others) // 100]
        if there == self.others:
            self.blobs[digest_of(there)], self.labels[digest_of(there)] = there, {}
            self.locked.discard(name)

    def _put(self, name: str, request: messages.WriteContentRequest, context: grpc.ServicerContext) -> None:
        if request.offset == 0:
            self.ingests[name] = b""
        elif request.offset != len(self.ingests[name]):
            context.abort(grpc.StatusCode.OUT_OF_RANGE, f"write @{request.offset} must occur at {len(self.ingests[name])}")
        if request.data:
            self.writes.append((request.offset, len(request.data)))
        self.ingests[name] += request.data

    def _info(self, digest: str) -> messages.Info:
        return messages.Info(digest=digest, size=len(self.blobs[digest]), labels=self.labels[digest])

    def _note(self, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        assert metadata["containerd-namespace"] == "tests"
        self.leases.add(str(metadata.get("containerd-lease", "")))
