"""A layer that is downloaded in one stream: bytes that come wrong are fetched once more."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from lazyfs.errors import DigestMismatch, InvalidInput
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor
from lazyfs.format.platform import this_platform
from lazyfs.image.image import resolve_image
from lazyfs.layertar.download import download
from lazyfs.source.protocol import RangeStream
from lazyfs.verify.image import verify_image
from tests.tars import file
from tests.unit.image.memory import MemorySource

TAR = file(b"a", b"content" * 1000) + bytes(1024)
BLOB = gzip.compress(TAR, mtime=0)
LAYER = Descriptor(OCI_LAYER_GZIP, digest_of(BLOB), len(BLOB), {}, None, {})


class Wrong(MemorySource):
    """The first `times` ranges come with one byte changed, `at` this place."""

    def __init__(self, times: int, at: int = 20) -> None:
        super().__init__()
        self.put(BLOB)
        self.times = times
        self._at = at

    @asynccontextmanager
    async def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AsyncIterator[RangeStream]:
        right = self.blobs[digest]
        if self.times:
            self.times -= 1
            self.blobs[digest] = right[: self._at] + bytes([right[self._at] ^ 1]) + right[self._at + 1 :]
        async with super().open_range(digest, size, start, end) as stream:
            self.blobs[digest] = right
            yield stream


WHOLE = f"range {LAYER.digest} 0 {len(BLOB)}"
TWICE = [WHOLE, f"distrust {LAYER.digest}", WHOLE]


@pytest.mark.parametrize("at", [0, 20, len(BLOB) - 6])
async def test_what_comes_wrong_once_is_fetched_once_more(at: int) -> None:
    """From another connection; the progress that was reported is taken back. In the compression's header, its data and its checksum."""
    source = Wrong(1, at)
    steps: list[int] = []
    with await download(source, LAYER, digest_of(TAR), steps.append, keep_blob=True) as spool:
        assert spool.read_at(0, len(TAR)) == TAR
        with spool.take_blob() as blob:
            assert os.pread(blob.fileno(), 1 << 20, 0) == BLOB
    assert source.asked == TWICE
    assert sum(steps) == len(BLOB)


async def test_what_comes_wrong_twice_is_an_error() -> None:
    """Two requests, and no third."""
    source = Wrong(9)
    with pytest.raises(DigestMismatch, match="hashes to"):
        await download(source, LAYER, digest_of(TAR), lambda _: None, keep_blob=False)
    assert source.asked == TWICE


async def test_an_image_that_is_wrong_about_its_bytes_is_not_asked_again() -> None:
    """Its blob is what its manifest names: another diff ID, or broken gzip, would come again."""
    source = Wrong(0)
    with pytest.raises(DigestMismatch, match="diff ID"):
        await download(source, LAYER, digest_of(b""), lambda _: None, keep_blob=False)
    broken = BLOB[:-6] + bytes(6)
    source.put(broken)
    layer = Descriptor(OCI_LAYER_GZIP, digest_of(broken), len(broken), {}, None, {})
    with pytest.raises(InvalidInput, match="broken gzip"):
        await download(source, layer, digest_of(TAR), lambda _: None, keep_blob=False)
    assert source.asked == [WHOLE, f"range {layer.digest} 0 {len(broken)}"]


async def test_an_empty_blob_is_not_asked_for() -> None:
    """No range has no bytes."""
    source = Wrong(0)
    layer = Descriptor(OCI_LAYER_TAR, digest_of(b""), 0, {}, None, {})
    (await download(source, layer, digest_of(b""), lambda _: None, keep_blob=False)).close()
    assert source.asked == []


async def test_verify_fetches_once_more() -> None:
    """An image that arrives wrong once is sound."""
    source = Wrong(0)
    source.put_image(BLOB, annotated=False, rootfs={"type": "layers", "diff_ids": [digest_of(TAR)]})
    image = await resolve_image(source, "v1", this_platform(), None)
    source.times = 1
    assert (await verify_image(source, image, lambda _: None)).problems == ()
