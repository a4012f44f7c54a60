"""A layer of a dialect that has its TOC in front: loaded by what the dialect says, and by nothing that is eStargz's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from lazyfs.errors import DigestMismatch, InvalidInput, InvalidToc, NotLazy
from lazyfs.fetch.piece import LayerBlob
from lazyfs.fetch.unpack import Packed, unpack
from lazyfs.format import dialects
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import OCI_LAYER_ZSTD, Descriptor
from lazyfs.image.layer import load_layer
from lazyfs.store.store import Store
from tests.bad.oci import file
from tests.dialect.front import ANNOTATION, FRONT, HEADER, MAGIC, SKIPPABLE
from tests.unit.image.memory import MemorySource

DATA = b"what the file holds"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, FRONT))
    with Store.open(tmp_path / "store") as store:
        yield store


def blob_of(names: int, level: int = 3) -> tuple[bytes, bytes]:
    """A blob of one file and so many directories, and its compressed TOC."""
    base = HEADER + 200 * names + 1000
    digest = digest_of(DATA)
    entries = [file("f", size=len(DATA), offset=base, digest=digest, chunkDigest=digest)]
    entries += [{"name": hashlib.sha256(b"%d" % number).hexdigest(), "type": "dir"} for number in range(names)]
    text = json.dumps({"version": 1, "entries": entries}).encode()
    packed = zstandard.compress(text, level)
    front = SKIPPABLE + (base - 8).to_bytes(4, "little") + MAGIC
    front += len(packed).to_bytes(8, "little") + len(text).to_bytes(8, "little") + packed
    return front.ljust(base, b"\0") + zstandard.compress(DATA + b"and what follows"), packed


def descriptor_of(blob: bytes, packed: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER_ZSTD, digest_of(blob), len(blob), {ANNOTATION: digest_of(packed)}, None, {})


@pytest.mark.parametrize(("names", "ranges"), [(0, 1), (300, 2), (5000, 2)])
async def test_the_toc_is_fetched_from_where_it_is(store: Store, names: int, ranges: int) -> None:
    """With the first range, or what is missing of it with a second; and then from the store, under the digest that the manifest names."""
    blob, packed = blob_of(names)
    source = MemorySource()
    source.put(blob)
    descriptor = descriptor_of(blob, packed)
    layer = await load_layer(source, store, descriptor)
    assert len(layer.entries) == names + 1
    assert (layer.dialect, layer.toc_offset) == (FRONT, len(blob))
    assert len(source.asked) == ranges
    assert store.document(digest_of(packed)) == packed
    note = f"toc-offset {source.authority} {layer.digest}"
    assert store.note(note) is None, "that one is eStargz's"
    assert store.note(f"{note} front") is not None
    source.away = True
    assert await load_layer(source, store, descriptor) == layer


async def test_another_toc_than_the_manifests(store: Store) -> None:
    """A dialect whose document does not have the digest is refused, after fetching once more."""
    blob, packed = blob_of(300)
    source = MemorySource()
    source.put(blob)
    for lie in (packed[:-1], packed + b"x"):
        with pytest.raises(DigestMismatch, match="the TOC of layer"):
            await load_layer(source, store, descriptor_of(blob, lie))
    assert sum(asked.startswith("distrust") for asked in source.asked) == 2


async def test_what_is_claimed_is_bounded(store: Store) -> None:
    """A TOC that says too much of itself is not unpacked; one of another format is none."""
    blob, packed = blob_of(300)
    huge = blob[:24] + (1 << 40).to_bytes(8, "little") + blob[32:]
    other = b"x" + blob[1:]
    for wrong, error, words in ((huge, InvalidToc, "more than 268435456"), (other, NotLazy, "has no TOC in front")):
        source = MemorySource()
        source.put(wrong)
        with pytest.raises(error, match=words):
            await load_layer(source, store, descriptor_of(wrong, packed))
        assert store.document(digest_of(packed)) is None


async def test_its_chunks_are_decoded_and_verified(store: Store) -> None:
    """By its own codec, at the one door; what is damaged is not kept."""
    blob, packed = blob_of(0)
    source = MemorySource()
    source.put(blob)
    pieces = LayerBlob.of(await load_layer(source, store, descriptor_of(blob, packed)))
    (piece,) = pieces.pieces
    start, end = piece.chunk.member, piece.chunk.member_end
    assert end == len(blob)
    frames = {"another frame": zstandard.compress(b"something else that is there"), "no frame": bytes(end - start)}
    for data in frames.values():
        (wrong,) = unpack(store, Packed(start, data, [piece], "layer 1", pieces.dialect))
        assert isinstance(wrong.error, InvalidInput)
        assert wrong.data is None
        assert store.read(piece.content, 0, 0, len(DATA)) is None
    (right,) = unpack(store, Packed(start, blob[start:end], [piece], "layer 1", pieces.dialect))
    assert (right.error, right.data) == (None, DATA)
    assert store.read(piece.content, 0, 0, len(DATA)) == DATA
