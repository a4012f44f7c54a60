"""A pull and containerd's content store: fetch, resume, start over, wait, give up."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from lazyfs.errors import ContainerdFailed, DigestMismatch, Unreachable
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_CONFIG, OCI_LAYER_GZIP, Descriptor
from lazyfs.pull import content as module
from lazyfs.pull.containerd import Containerd
from lazyfs.pull.content import Content
from lazyfs.source.protocol import ImageSource, RangeStream
from tests.unit.fetch.scripted import ScriptedSource
from tests.unit.pull.content_store import ContentStore

BLOB = random.Random(7).randbytes(10_000)
LAYER = Descriptor(OCI_LAYER_GZIP, digest_of(BLOB), len(BLOB), {}, None, {})
INGEST = f"layer-{LAYER.digest}"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ContentStore]:
    """Pieces are small and pauses short: what counts is how often, not how long."""
    monkeypatch.setattr(module, "_WRITE_SIZE", 1000)
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    with ContentStore() as running:
        yield running


@pytest.fixture
def content(store: ContentStore) -> Iterator[Content]:
    with Containerd(store.address, "tests") as containerd:
        containerd.lease = "the lease"
        yield Content(containerd)


def labelled(known: Mapping[str, str]) -> dict[str, str]:
    return {"own": "yes", "also": known.get("also", "") + "+"}


async def download(content: Content, source: ImageSource, blob: Descriptor = LAYER) -> list[int]:
    """The reported progress."""
    heard: list[int] = []
    await content.fetch(source, blob, labelled, heard.append)
    return heard


class Breaking(ScriptedSource):
    """Each range breaks off after `count` bytes."""

    def __init__(self, blob: bytes, count: int) -> None:
        super().__init__(blob)
        self.count = count

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[RangeStream]:
        async with super().open_range(digest, size, start, end) as stream:
            yield _Breaking(stream, self.count)


class Waiting(ScriptedSource):
    """Answers when its gate is opened."""

    def __init__(self, blob: bytes) -> None:
        super().__init__(blob)
        self.gate = trio.Event()
        self.asked = trio.Event()

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[RangeStream]:
        self.asked.set()
        async with super().open_range(digest, size, start, end) as stream:
            yield stream


class _Breaking:
    def __init__(self, stream: RangeStream, count: int) -> None:
        self._stream = stream
        self._left = count

    async def receive_exactly(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise Unreachable("the source has gone away")
        return bytes(await self._stream.receive_exactly(count))


async def test_a_document_is_written_once(store: ContentStore, content: Content) -> None:
    """With its labels; one that is there gets those that it lacks, and keeps the others. All of it under the lease."""
    data = b"a config, longer than one message of the answer"
    for expected in ("+", "++"):
        await content.keep(OCI_CONFIG, digest_of(data), data, labelled)
        assert store.labels == {digest_of(data): {"own": "yes", "also": expected}}
    assert store.writes == [(0, len(data))]
    assert store.leases == {"the lease"}
    assert not store.ingests and not store.locked


async def test_content_is_read_and_verified(store: ContentStore, content: Content) -> None:
    """Bytes of another digest are not believed, even of containerd; what is not there or too long is None."""
    data = b"a config, longer than one message of the answer"
    await content.keep(OCI_CONFIG, digest_of(data), data, labelled)
    assert await content.read(digest_of(data), 1000) == data
    assert await content.read(digest_of(data), 10) is None
    assert await content.read(digest_of(b""), 1000) is None
    store.blobs[digest_of(data)] = b"rot"
    with pytest.raises(DigestMismatch):
        await content.read(digest_of(data), 1000)


async def test_a_blob_is_downloaded_once(store: ContentStore, content: Content) -> None:
    """All of its bytes, with progress; the second time nothing is transferred."""
    source = ScriptedSource(BLOB)
    heard = await download(content, source)
    assert store.blobs == {LAYER.digest: BLOB} and store.labels[LAYER.digest]["own"] == "yes"
    assert heard == [0, *range(1000, 10_001, 1000), 10_000]
    assert await download(content, source) == [10_000]
    assert source.ranges == [(0, 10_000)]


async def test_an_empty_blob_is_downloaded(store: ContentStore, content: Content) -> None:
    """No range can be asked of it."""
    source = ScriptedSource()
    await download(content, source, Descriptor(OCI_LAYER_GZIP, digest_of(b""), 0, {}, None, {}))
    assert store.blobs == {digest_of(b""): b""} and source.ranges == []


@pytest.mark.parametrize("there", [1, 4000, 10_000])
async def test_an_abandoned_ingest_is_gone_on_from(store: ContentStore, content: Content, there: int) -> None:
    """Whichever client began the ingest, only the missing bytes are fetched."""
    store.ingests[INGEST] = BLOB[:there]
    source = ScriptedSource(BLOB)
    await download(content, source)
    assert store.blobs == {LAYER.digest: BLOB}
    assert source.ranges == ([(there, 10_000)] if there < 10_000 else [])


@pytest.mark.parametrize("rubbish", [b"rubbish", b"rubbish" * 2000])
async def test_an_abandoned_ingest_of_other_bytes_is_begun_again(store: ContentStore, content: Content, rubbish: bytes) -> None:
    """What another one has left is believed until it is whole, and not longer."""
    store.ingests[INGEST] = rubbish
    await download(content, ScriptedSource(BLOB))
    assert store.blobs == {LAYER.digest: BLOB} and not store.ingests


async def test_a_lie_is_an_error_and_leaves_nothing(store: ContentStore, content: Content) -> None:
    """A blob of another digest is not kept, not even as an ingest that the next one would go on from."""
    source = ScriptedSource()
    source.blobs[LAYER.digest] = BLOB[::-1]
    with pytest.raises(DigestMismatch, match="has another digest"):
        await download(content, source)
    assert not store.blobs and not store.ingests and not store.locked


async def test_a_sender_that_breaks_off_for_good_leaves_what_has_arrived(store: ContentStore, content: Content) -> None:
    """The stream has tried again by itself. What came before is kept, the lock is not, and the next pull asks for the rest."""
    with pytest.raises(Unreachable):
        await download(content, Breaking(BLOB, 1500))
    assert store.ingests == {INGEST: BLOB[:1000]}
    source = ScriptedSource(BLOB)
    await download(content, source)
    assert source.ranges == [(1000, 10_000)] and store.blobs == {LAYER.digest: BLOB}


async def test_wrong_bytes_are_fetched_from_scratch_once(store: ContentStore, content: Content) -> None:
    """A second fetch with the right bytes succeeds; wrong bytes again are the source's fault."""
    source = ScriptedSource(BLOB)
    source.lies = 1
    await download(content, source)
    assert store.blobs == {LAYER.digest: BLOB}
    assert source.ranges == [(0, 10_000)] * 2 and source.distrusted == [LAYER.digest]
    store.blobs.clear()
    source.lies = 2
    with pytest.raises(DigestMismatch, match="has another digest"):
        await download(content, source)
    assert source.lies == 0 and not store.ingests


async def test_a_sender_without_ranges_begins_at_the_beginning(store: ContentStore, content: Content) -> None:
    """And what was there is overwritten."""
    store.ingests[INGEST] = BLOB[:4000]
    source = ScriptedSource(BLOB)
    source.ignores_ranges = True
    await download(content, source)
    assert source.ranges == [(4000, 10_000), (0, 10_000)]
    assert store.blobs == {LAYER.digest: BLOB}


async def test_another_writer_is_waited_for(store: ContentStore, content: Content) -> None:
    """As long as it gets on, and when it has ended its blob is there."""
    store.ingests[INGEST] = b""
    store.locked.add(INGEST)
    store.others = BLOB
    await download(content, ScriptedSource())
    assert store.labels[LAYER.digest]["own"] == "yes" and not store.writes


async def test_another_writer_that_gets_nowhere_is_an_error(store: ContentStore, content: Content) -> None:
    """After a while, in containerd's own words."""
    store.ingests[INGEST] = b""
    store.locked.add(INGEST)
    with pytest.raises(ContainerdFailed, match="locked"):
        await download(content, ScriptedSource(BLOB))


async def test_cancelled_it_leaves_what_has_arrived(store: ContentStore, content: Content) -> None:
    """And gives the lock back: the next one goes on from there."""
    source = Waiting(BLOB)
    store.ingests[INGEST] = BLOB[:500]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(download, content, source)
        await source.asked.wait()
        nursery.cancel_scope.cancel()
    source.gate.set()
    await download(content, source)
    assert source.ranges == [(500, 10_000)] * 2
    assert store.blobs == {LAYER.digest: BLOB}


def test_no_containerd_is_said_in_words(store: ContentStore) -> None:
    """A missing socket, one without a listener, and an impossible path."""
    missing = store.address.with_name("none")
    stale = store.address.with_name("stale")
    stale.touch()
    for address, words in (
        (missing, "there is no containerd"),
        (stale, "no containerd answers"),
        (missing / ("x" * 200), "no containerd answers"),
    ):
        with pytest.raises(ContainerdFailed, match=words):
            Containerd(address, "tests")
