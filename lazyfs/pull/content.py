"""containerd's content store: documents and blobs by digest, and unfinished writes (ingests).

Opening a writer also asks whether the content exists: if it does, that call puts it under the lease. containerd verifies what is committed.
An ingest survives its writer. Its name is the one that containerd's own client uses, so that either can resume it.

Source: containerd, api/services/content/v1/content.proto and services/content/contentserver. A message at offset 0 truncates, so every
other message gives its offset, including the commit.
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
"""Seconds for containerd to hash an ingest, or to sync all of it."""
_PAUSE: Final = 1.0
_LOCKED_TRIES: Final = 60
"""How often to wait for another client that writes the same ingest and makes no progress."""

Received = Callable[[int], None]
"""Called with the number of bytes of a blob that have arrived."""
Labels = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Maps the labels that content has to those to set; other labels stay."""


class Content:
    """The content store of one namespace."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._service = containerd.content

    async def read(self, digest: Digest, limit: int) -> bytes | None:
        """Content of at most `limit` bytes, verified; None if it is missing or larger. Raises ContainerdFailed, DigestMismatch."""
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
        """Write a document unless it exists. Raises ContainerdFailed."""
        async with self._writing(Descriptor(media_type, digest, len(data), {}, None, {})) as ingest:
            if ingest is None or not await ingest.commit(0, data, labels):
                await self.label(digest, labels)

    async def label(self, digest: Digest, labels: Labels) -> None:
        """Set labels of existing content. Raises ContainerdFailed."""
        found = await self._info(digest)
        known = found.labels if found else {}
        changed = {key: value for key, value in labels(known).items() if known.get(key) != value}
        if changed:
            mask = FieldMask(paths=[f"labels.{key}" for key in changed])
            request = content_pb2.UpdateRequest(info=content_pb2.Info(digest=digest, labels=changed), update_mask=mask)
            await self._containerd.call(self._service.Update, request)

    async def fetch(self, source: ImageSource, blob: Descriptor, labels: Labels, received: Received) -> None:
        """Fetch what is missing of a blob from `source`; nothing if it exists.

        Raises SourceError, ContainerdFailed, DigestMismatch. Cancelled: what has arrived stays, and the next fetch resumes there.
        """
        is_distrusted = False
        while (start := await self._fetch_once(source, blob, labels, received)) is not None:
            if start:
                continue  # what an earlier writer left may have been wrong
            if is_distrusted:
                raise DigestMismatch(f"layer {blob.digest}, as {source.name} sends it, has another digest")
            _log.info("%s: layer %s has another digest: fetching it once more", source.name, blob.digest)
            source.distrust(blob.digest)
            is_distrusted = True
        received(blob.size)

    async def _fetch_once(self, source: ImageSource, blob: Descriptor, labels: Labels, received: Received) -> int | None:
        """None: the blob exists now. A number: its digest was wrong and it was removed; so many bytes were from an earlier writer."""
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
        """The only writer of a blob; None if it exists. Waits for another client that is writing it."""
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
    """A blob that is being written: a stream of requests, each with a response."""

    def __init__(self, containerd: Containerd, blob: Descriptor) -> None:
        self._blob = blob
        self.name = ingest_name(blob.media_type, blob.digest)
        self.start = 0
        """Bytes that an earlier writer left."""
        self._requests: SimpleQueue[content_pb2.WriteContentRequest | None] = SimpleQueue()
        self._answers = containerd.content.Write(iter(self._requests.get, None), metadata=containerd.metadata)

    async def begin(self) -> bool:
        """Lock this ingest. False: the content exists already."""
        blob = self._blob
        request = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=self.name, total=blob.size, expected=blob.digest)
        answer = await self._exchange(request, _COMMIT_DEADLINE)
        if answer is not None and answer.offset <= blob.size:  # a longer ingest is overwritten
            self.start = answer.offset
        return answer is not None

    async def write(self, offset: int, data: bytes) -> None:
        """Write at the end, or at 0 to start over."""
        await self._exchange(content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=offset, data=data), DEADLINE)

    async def commit(self, offset: int, data: bytes, labels: Labels) -> bool:
        """Write the last bytes; containerd verifies the whole. False: another client has committed it first. Raises ContainerdFailed."""
        request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=offset, data=data, labels=labels({}))
        request.total, request.expected = self._blob.size, self._blob.digest
        return await self._exchange(request, _COMMIT_DEADLINE) is not None

    def close(self) -> None:
        """Unlock the ingest."""
        self._requests.put(None)
        self._answers.cancel()

    async def _exchange(
        self, request: content_pb2.WriteContentRequest, deadline: float
    ) -> content_pb2.WriteContentResponse | None:
        """None: the content exists already."""
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
    """Write what is missing, without the commit. Raises SourceError, ContainerdFailed."""
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
            offset = 0  # the server sends only whole blobs
