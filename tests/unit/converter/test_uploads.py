"""Blobs on their way: held back, sent once, not sent where they are."""

from __future__ import annotations

from typing import IO

import pytest
import trio
import trio.testing

from converter.uploads import Uploads
from lazyfs.errors import DigestMismatch
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from lazyfs.layertar.spool import unnamed_file, write
from tests.unit.converter.places import MemoryRepository

DATA = b"a blob"
DIGEST = digest_of(DATA)


def file_of(data: bytes) -> IO[bytes]:
    file = unnamed_file()
    write(file, data)
    return file


def blob(digest: Digest = DIGEST) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, digest, len(DATA), {}, None, {})


async def test_nothing_is_sent_before_the_gate_opens() -> None:
    """Not even what is ready; then everything is, and counted."""
    sink, counted = MemoryRepository(), []
    async with trio.open_nursery() as nursery:
        uploads = Uploads(MemoryRepository(), sink, nursery)
        uploads.send(DIGEST, len(DATA), file_of(DATA), False, counted.append)
        uploads.send_bytes(b"config")
        await trio.testing.wait_all_tasks_blocked()
        assert sink.done == []
        uploads.start()
    assert sink.blobs == {DIGEST: DATA, digest_of(b"config"): b"config"}
    assert counted == [len(DATA)]


async def test_a_blob_is_sent_once() -> None:
    """However often it is asked for; and its file is closed each time."""
    sink, files = MemoryRepository(), [file_of(DATA), file_of(DATA)]
    async with trio.open_nursery() as nursery:
        uploads = Uploads(MemoryRepository(), sink, nursery)
        uploads.start()
        for file in files:
            uploads.send(DIGEST, len(DATA), file, False, lambda _count: None)
    assert sink.done == [f"blob {DIGEST}"]
    assert all(file.closed for file in files)


async def test_what_is_there_is_not_sent() -> None:
    """It is there already, or the sink takes it from the source by itself: only what the source has, though."""
    source, sink = MemoryRepository(), MemoryRepository()
    sink.blobs[DIGEST] = DATA
    other = digest_of(b"other")
    source.blobs[other] = b"other"
    sink.mounts_from = source
    async with trio.open_nursery() as nursery:
        uploads = Uploads(source, sink, nursery)
        uploads.start()
        uploads.send(DIGEST, len(DATA), file_of(DATA), False, lambda _count: None)
        uploads.send(other, 5, file_of(b"other"), True, lambda _count: None)
        uploads.send(digest_of(b"new"), 3, file_of(b"new"), False, lambda _count: None)
    assert sorted(sink.done) == sorted([f"mount {other}", f"blob {digest_of(b'new')}"])


async def test_a_blob_is_copied_as_it_is() -> None:
    """Fetched and verified before the gate opens, if the sink does not have it."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.blobs[DIGEST] = DATA
    async with trio.open_nursery() as nursery:
        uploads = Uploads(source, sink, nursery)
        await uploads.copy(blob())
        await uploads.copy(blob())
        assert sink.done == []
        uploads.start()
    assert sink.blobs == {DIGEST: DATA}
    assert source.done == [f"read {DIGEST}"]


async def test_a_wrong_blob_is_not_copied() -> None:
    """DigestMismatch, and nothing at the sink."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.blobs[DIGEST] = b"A blob"
    async with trio.open_nursery() as nursery:
        uploads = Uploads(source, sink, nursery)
        with pytest.raises(DigestMismatch, match=DIGEST):
            await uploads.copy(blob())
        uploads.start()
    assert sink.done == []


async def test_a_copy_is_not_made_where_one_is() -> None:
    """The source is not even asked."""
    source, sink = MemoryRepository(), MemoryRepository()
    sink.blobs[DIGEST] = DATA
    async with trio.open_nursery() as nursery:
        uploads = Uploads(source, sink, nursery)
        uploads.start()
        await uploads.copy(blob())
    assert source.done == sink.done == []


async def test_cancelled_uploads_close_their_files() -> None:
    """Those that wait at the gate as well."""
    file = file_of(DATA)
    async with trio.open_nursery() as nursery:
        Uploads(MemoryRepository(), MemoryRepository(), nursery).send(DIGEST, len(DATA), file, False, lambda _count: None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert file.closed
