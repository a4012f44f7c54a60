"""containerd's content store: documents and blobs by digest, and the half-written ones in between (ingests).

Opening a writer is how it is asked whether content is there: if so, that answer also puts it under the lease. containerd itself
verifies what is committed. An ingest survives whoever wrote it, under a name that containerd's own client uses as well: where it
ended is where the next one goes on.

Source: containerd, api/services/content/v1/content.proto and services/content/contentserver. A message at offset 0 truncates, so that
every other one says its offset, the commit included.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from queue import SimpleQueue
from typing import Final

import trio
from google.protobuf.field_mask_pb2 import FieldMask

from lazyfs.api.services.content.v1 import content_pb2
from lazyfs.errors import ContainerdFailed, DigestMismatch, RangeIgnored
from lazyfs.format.digest import Digest, check
from lazyfs.format.manifest import Descriptor
from lazyfs.pull.containerd import DEADLINE, Containerd, refusals
from lazyfs.pull.labels import ingest_name
from lazyfs.source.protocol import ImageSource

_log = logging.getLogger(__name__)

_WRITE_SIZE: Final = 1 << 20
_COMMIT_DEADLINE: Final = 1800.0
"""Seconds for containerd to hash what is there of an ingest, or to write all of it to the disk."""
_PAUSE: Final = 1.0
_LOCKED_TRIES: Final = 60
"""How often, with that pause, to wait for another client that writes the same ingest and gets no further."""

Received = Callable[[int], None]
"""Told how many bytes of a blob are there now."""
Labels = Callable[[Mapping[str, str]], Mapping[str, str]]
"""From the labels that content has to those that it shall have, besides the others."""


class Content:
    """The content store of one name space."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._service = containerd.content

    async def read(self, digest: Digest, limit: int) -> bytes | None:
        """Content of at most `limit` bytes, verified; None where it is not there, or larger. Raises ContainerdFailed, DigestMismatch."""
        found = await self._info(digest)
        if found is None or found.size > limit:
            return None
        request = content_pb2.ReadContentRequest(digest=digest)
        with refusals():
            parts = self._service.Read(request, timeout=DEADLINE, metadata=self._containerd.metadata)
            try:
                data = await trio.to_thread.run_sync(lambda: b"".join(part.data for part in parts), abandon_on_cancel=True)
            finally:
                parts.cancel()
        check(data, digest, f"the content {digest} of containerd")
        return data

    async def keep(self, media_type: str, digest: Digest, data: bytes, labels: Labels) -> None:
        """Write a document, or see that it is there. Raises ContainerdFailed."""
        async with self._writing(Descriptor(media_type, digest, len(data), {}, None, {})) as ingest:
            if ingest is None or not await ingest.commit(0, data, labels):
                await self.label(digest, labels)

    async def label(self, digest: Digest, labels: Labels) -> None:
        """Set labels of what is there. Raises ContainerdFailed."""
        found = await self._info(digest)
        known = found.labels if found else {}
        changed = {key: value for key, value in labels(known).items() if known.get(key) != value}
        if changed:
            mask = FieldMask(paths=[f"labels.{key}" for key in changed])
            request = content_pb2.UpdateRequest(info=content_pb2.Info(digest=digest, labels=changed), update_mask=mask)
            await self._containerd.call(self._service.Update, request)

    async def fetch(self, source: ImageSource, blob: Descriptor, labels: Labels, received: Received) -> None:
        """Bring a blob from `source`, or what is missing of it, or see that it is there.

        Raises SourceError, ContainerdFailed, DigestMismatch. Cancelled: what has arrived stays, for the next to go on from.
        """
        is_distrusted = False
        while (start := await self._fetch_once(source, blob, labels, received)) is not None:
            if start:
                continue  # what an earlier one had left may have been wrong
            if is_distrusted:
                raise DigestMismatch(f"layer {blob.digest}, as {source.name} sends it, has another digest")
            _log.info("%s: layer %s has another digest: fetching it once more", source.name, blob.digest)
            source.distrust(blob.digest)
            is_distrusted = True
        received(blob.size)

    async def _fetch_once(self, source: ImageSource, blob: Descriptor, labels: Labels, received: Received) -> int | None:
        """None: it is there. A number: all of it had come, so many bytes of it from an earlier one; its digest was wrong, and it is gone."""
        async with self._writing(blob) as ingest:
            if ingest is None:
                await self.label(blob.digest, labels)
                return None
            await _fill(ingest, source, blob, received)
            try:
                if not await ingest.commit(blob.size, b"", labels):
                    await self.label(blob.digest, labels)
            except ContainerdFailed as error:
                if error.status != "FAILED_PRECONDITION":
                    raise
                request = content_pb2.AbortRequest(ref=ingest.name)
                await self._containerd.call_unless("NOT_FOUND", self._service.Abort, request)
                return ingest.start
        return None

    @asynccontextmanager
    async def _writing(self, blob: Descriptor) -> AsyncIterator[_Ingest | None]:
        """The one writer of a blob; None where it is there already. Waits for another client that writes it."""
        left, farthest = _LOCKED_TRIES, -1
        while True:
            ingest = _Ingest(self._containerd, blob)
            try:
                try:
                    there = not await ingest.begin()
                except ContainerdFailed as error:
                    if error.status != "UNAVAILABLE" or "locked" not in error.message:
                        raise
                    offset = await self._offset(ingest.name)
                    left = left - 1 if offset <= farthest else _LOCKED_TRIES
                    farthest = offset
                    if not left:
                        raise
                else:
                    yield None if there else ingest
                    return
            finally:
                ingest.close()
            await trio.sleep(_PAUSE)

    async def _offset(self, name: str) -> int:
        request = content_pb2.StatusRequest(ref=name)
        answer = await self._containerd.call_unless("NOT_FOUND", self._service.Status, request)
        return answer.status.offset if answer else -1

    async def _info(self, digest: Digest) -> content_pb2.Info | None:
        answer = await self._containerd.call_unless("NOT_FOUND", self._service.Info, content_pb2.InfoRequest(digest=digest))
        return answer.info if answer else None


class _Ingest:
    """One blob being written: a stream of messages, each answered."""

    def __init__(self, containerd: Containerd, blob: Descriptor) -> None:
        self._blob = blob
        self.name = ingest_name(blob.media_type, blob.digest)
        self.start = 0
        """How many bytes an earlier writer had left."""
        self._requests: SimpleQueue[content_pb2.WriteContentRequest | None] = SimpleQueue()
        self._answers = containerd.content.Write(iter(self._requests.get, None), metadata=containerd.metadata)

    async def begin(self) -> bool:
        """Get the lock of this ingest. False: there is such content already."""
        blob = self._blob
        request = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=self.name, total=blob.size, expected=blob.digest)
        answer = await self._exchange(request, _COMMIT_DEADLINE)
        if answer is not None and answer.offset <= blob.size:  # a longer one is overwritten
            self.start = answer.offset
        return answer is not None

    async def write(self, offset: int, data: bytes) -> None:
        """At the end of what is there, or at 0 to begin anew."""
        await self._exchange(content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=offset, data=data), DEADLINE)

    async def commit(self, offset: int, data: bytes, labels: Labels) -> bool:
        """Write the last of it; verified. False: somebody else has brought it meanwhile. Raises ContainerdFailed."""
        request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=offset, data=data, labels=labels({}))
        request.total, request.expected = self._blob.size, self._blob.digest
        return await self._exchange(request, _COMMIT_DEADLINE) is not None

    def close(self) -> None:
        """Give the lock back."""
        self._requests.put(None)
        self._answers.cancel()

    async def _exchange(
        self, request: content_pb2.WriteContentRequest, deadline: float
    ) -> content_pb2.WriteContentResponse | None:
        """None: there is such content already."""
        self._requests.put(request)
        try:
            with refusals(), trio.fail_after(deadline):
                answer = await trio.to_thread.run_sync(next, self._answers, None, abandon_on_cancel=True)
        except trio.TooSlowError:
            raise ContainerdFailed(f"containerd has not taken a part of {self.name} within {deadline:.0f} s") from None
        except ContainerdFailed as error:
            if error.status == "ALREADY_EXISTS":
                return None
            raise
        if answer is None:
            raise ContainerdFailed(f"containerd aborted the write of {self.name}", status="UNAVAILABLE")
        return answer


async def _fill(ingest: _Ingest, source: ImageSource, blob: Descriptor, received: Received) -> None:
    """Write what is missing, but for the commit. Raises SourceError, ContainerdFailed."""
    offset = ingest.start
    while offset < blob.size:
        received(offset)
        try:
            async with source.open_range(blob.digest, blob.size, offset, blob.size, urls=blob.urls) as stream:
                while offset < blob.size:
                    data = bytes(await stream.receive_exactly(min(_WRITE_SIZE, blob.size - offset)))
                    await ingest.write(offset, data)
                    offset += len(data)
                    received(offset)
        except RangeIgnored:
            offset = 0  # who sends nothing but whole blobs begins at their beginning
