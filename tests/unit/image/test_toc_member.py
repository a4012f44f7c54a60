"""The member that holds a TOC: what it says of itself is believed within bounds, and a large one is in memory once."""

from __future__ import annotations

import json
import os
import random
import tarfile

import pytest

from lazyfs.errors import InvalidInput, InvalidToc
from lazyfs.format import estargz
from lazyfs.format.dialect import TocLocation
from lazyfs.format.digest import digest_of
from lazyfs.format.estargz import ESTARGZ, TOC_DIGEST
from lazyfs.format.footer import FOOTER_SIZE, build_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from lazyfs.format.member import compress_member
from lazyfs.image import toc_member
from lazyfs.image.layer import load_layer
from lazyfs.image.toc_member import TocMember
from lazyfs.store.store import Store
from tests.toc_member import read_toc_member
from tests.unit.image.memory import MemorySource


def member(json_size: int, size_field: bytes = b"", level: int = 6, fill: bytes = b" ") -> bytes:
    """A TOC's member, whose tar header may be given other values."""
    info = tarfile.TarInfo("stargz.index.json")
    info.size = json_size
    block = bytearray(info.tobuf())
    if size_field:
        block[124:136] = size_field
    return compress_member(bytes(block) + (fill * json_size)[:json_size] + bytes(1024), level)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (b"-7777777777\0", "broken size"),
        (b"\xff" * 12, "has -1 bytes, which is not a size"),
        (b"\xff" + bytes(11), "which is not a size"),
        (b"\x80" + b"\x7f" * 11, "more than 268435456"),
        (b"7777777777\0\0", "more than 268435456"),
        (b"0o17\0\0\0\0\0\0\0\0", "broken size"),
        (b"1_0\0\0\0\0\0\0\0\0\0", "broken size"),
        (b"00700000000\0", "more than 671"),
        (b"00010000000\0", "cannot become 2097152"),
    ],
)
def test_a_size_that_cannot_be(field: bytes, words: str) -> None:
    """Negative in either notation, no number, or more than such a member may or can have: nothing is inflated for it."""
    with pytest.raises(InvalidToc, match=words):
        read_toc_member(member(300, field), "layer 1")


def test_a_member_that_is_far_longer_than_its_json() -> None:
    """A footer may point anywhere: 256 MiB for a TOC of 300 bytes are no TOC."""
    begin = member(300)
    with pytest.raises(InvalidToc, match="the compressed TOC has 200000000 bytes, more than its JSON of 300 bytes can take"):
        TocMember(ESTARGZ, TocLocation(0, 200_000_000, 0), "layer 1", begin)


def blob_of(toc: bytes, level: int) -> tuple[bytes, int]:
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(toc)
    data = compress_member(b"data")
    blob = data + compress_member(info.tobuf() + toc + bytes(-len(toc) % 512 + 1024), level) + build_footer(len(data))
    return blob, len(data)


def descriptor_of(blob: bytes, toc: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), {TOC_DIGEST: digest_of(toc)}, None, {})


async def test_a_large_toc_waits_on_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come with the blob's end is put on disk, inflated from there piece by piece, and is the same TOC."""
    monkeypatch.setattr(estargz, "_IN_ONE_GO", 1000)
    monkeypatch.setattr(toc_member, "_PIECE", 10_000)
    names = [random.Random(number).randbytes(20).hex() for number in range(3000)]
    toc = json.dumps({"version": 1, "entries": [{"name": name, "type": "dir"} for name in names]}).encode()
    blob, offset = blob_of(toc, 6)
    assert len(blob) > 64 << 10
    source = MemorySource()
    source.put(blob)
    for wanted in (store, None):
        layer = await load_layer(source, wanted, descriptor_of(blob, toc))
        assert [entry.name.decode() for entry in layer.entries] == names and layer.toc_offset == offset
    assert len([asked for asked in source.asked if asked.startswith("range")]) == 4
    assert await load_layer(source, store, descriptor_of(blob, toc)) == layer
    assert len(source.asked) == 4
    assert not [name for name in os.listdir(store.directory.temporary) if name.startswith("lazyfs-")]


async def test_what_is_no_toc_is_not_fetched_to_its_end(store: Store) -> None:
    """The first 64 KiB say whether it can be one."""
    blob = bytes(100 << 20) + build_footer(0)
    source = MemorySource()
    source.put(blob)
    with pytest.raises(InvalidInput, match="gzip"):
        await load_layer(source, store, descriptor_of(blob, b"{}"))


@pytest.mark.parametrize("cut", [1, 5000])
async def test_a_large_toc_that_ends_early(store: Store, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named like a small one that does."""
    monkeypatch.setattr(estargz, "_IN_ONE_GO", 1000)
    toc = random.Random(5).randbytes(50_000).hex().encode()
    blob, offset = blob_of(toc, 6)
    short = blob[: -FOOTER_SIZE - 2000 - cut] + build_footer(offset)
    source = MemorySource()
    source.put(short)
    with pytest.raises(InvalidInput, match=r"the gzip member (ends after|is broken)"):
        await load_layer(source, store, descriptor_of(short, toc))


async def test_the_note_of_an_earlier_version_is_enough(store: Store) -> None:
    """It says where the TOC is, and not what came: after an upgrade an image still needs no registry."""
    toc = json.dumps({"version": 1, "entries": [{"name": "d", "type": "dir"}]}).encode()
    blob, offset = blob_of(toc, 6)
    source = MemorySource()
    source.put(blob)
    layer = await load_layer(source, store, descriptor_of(blob, toc))
    store.keep_note(f"toc-offset {source.authority} {digest_of(blob)}", str(offset))
    source.away = True
    assert await load_layer(source, store, descriptor_of(blob, toc)) == layer


async def test_a_layer_that_was_accepted_stays(store: Store) -> None:
    """Overlapping chunks are refused, unless the layer may be mounted since before that was a rule."""
    files = [
        {"name": name, "type": "reg", "size": 3, "innerOffset": inner, "chunkDigest": digest_of(b"x")}
        for inner, name in enumerate("ab")
    ]
    toc = json.dumps({"version": 1, "entries": files}).encode()
    blob, _ = blob_of(toc, 6)
    source = MemorySource()
    source.put(blob)
    with pytest.raises(InvalidToc, match="overlap"):
        await load_layer(source, store, descriptor_of(blob, toc))
    for source.away in (False, True):
        layer = await load_layer(source, store, descriptor_of(blob, toc), accepted=True)
        assert [entry.name for entry in layer.entries] == [b"a", b"b"]
