"""Which layers stay as they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator

import msgspec
import pytest

from converter.kept import chunks_if_as_requested
from converter.layer import Style
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.footer import build_footer
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from lazyfs.format.member import compress_member
from lazyfs.format.tar import ReadAt
from lazyfs.format.tar_header import END_OF_TAR, header_bytes, padding
from lazyfs.layertar.content import read_content
from lazyfs.layertar.cut import Span, every
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.plan import Planned, plan_layer
from lazyfs.layertar.spool import Spool, unpack
from lazyfs.layertar.tree import LowerTree
from tests.tars import read
from tests.unit.converter.making import Converted, convert_tar, tar_of

FILES = [
    (Entry(b"d", "dir"), b""),
    (Entry(b"d/big", "reg", size=12), b"hello, world"),
    (Entry(b"d/small", "reg", size=3), b"abc"),
    (Entry(b"l", "hardlink", link=b"d/small"), b""),
]
STYLE = Style(every(5), 6)


def kept(blob: bytes, toc_digest: str | None, style: Style = STYLE, prioritized: tuple[bytes, ...] = ()) -> int | None:
    """Whether a layer with this blob would be kept: its chunks, if so."""
    tar = gzip.decompress(blob)
    annotations = {TOC_DIGEST: toc_digest} if toc_digest else {}
    layer = Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), annotations, None, {})
    position = 0

    def pull(count: int) -> bytes:
        nonlocal position
        position += count
        return blob[position - count : position]

    with Spool(keep_blob=True) as spool:
        unpack(spool, pull, layer, digest_of(tar), lambda _count: None)
        members = read(tar)
        plan = plan_layer(index_layer(LowerTree(), members, 0, "layer"), prioritized)
        return chunks_if_as_requested(plan, members, spool, layer, style.cut)


def test_our_own_layer_is_kept() -> None:
    """With the same options; and the number of chunks is reported."""
    converted = convert_tar(tar_of(FILES), style=STYLE)
    assert kept(converted.blob, converted.layer.toc_digest) == 5
    again = convert_tar(tar_of(FILES), style=STYLE, prioritized=[b"l"])
    assert kept(again.blob, again.layer.toc_digest, prioritized=(b"l",)) == 5


@pytest.mark.parametrize(("style", "prioritized"), [(Style(every(6), 6), ()), (Style(every(12), 6), ()), (STYLE, (b"d/small",))])
def test_other_options_want_another_layer(style: Style, prioritized: tuple[bytes, ...]) -> None:
    """Another chunk size, another order."""
    converted = convert_tar(tar_of(FILES), style=STYLE)
    assert kept(converted.blob, converted.layer.toc_digest, style, prioritized) is None


def test_an_ordinary_layer_is_not_kept() -> None:
    """Nor one without a TOC digest in the manifest, nor one with a wrong digest there."""
    converted = convert_tar(tar_of(FILES), style=STYLE)
    assert kept(gzip.compress(tar_of(FILES)), None) is None
    assert kept(gzip.compress(converted.tar), converted.layer.toc_digest) is None
    assert kept(converted.blob, None) is None
    assert kept(converted.blob, digest_of(b"another")) is None


def relabelled(converted: Converted, change: Callable[[list[dict[str, object]]], object]) -> tuple[bytes, str]:
    """The layer with another TOC, and that TOC's digest."""
    toc = json.loads(converted.toc)
    change(toc["entries"])
    data = msgspec.json.encode(toc)
    offset = converted.toc_offset
    tar = header_bytes(Entry(b"stargz.index.json", "reg", 0, size=len(data))) + data + bytes(padding(len(data))) + END_OF_TAR
    return converted.blob[:offset] + compress_member(tar) + build_footer(offset), digest_of(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries[-1].update(mode=0o600),
        lambda entries: entries[-1].update(linkName="d/big"),
        lambda entries: entries[1].update(modtime="1970-01-01T00:00:01Z"),
        lambda entries: entries.append({"name": "more", "type": "reg"}),
        lambda entries: entries.pop(),
        lambda entries: entries[2].update(chunkDigest="sha256:" + "0" * 64),
        lambda entries: entries[3].update(chunkDigest="sha256:" + "0" * 64),
        lambda entries: entries[3].update(offset=entries[2]["offset"]),
        lambda entries: entries[3].update(offset=int(str(entries[3]["offset"])) + 1),
        lambda entries: entries[2].update(innerOffset=1),
        lambda entries: entries[5].update(offset=entries[2]["offset"]),
        lambda entries: entries.insert(1, entries.pop()),
        lambda entries: entries[2].update(size=-1),
    ],
)
def test_a_toc_that_lies_is_not_kept(change: Callable[[list[dict[str, object]]], object]) -> None:
    """About an entry, a chunk, its place, its digest, or the order; a broken one neither."""
    converted = convert_tar(tar_of(FILES), style=STYLE)
    assert kept(*relabelled(converted, lambda entries: None)) == 5
    assert kept(*relabelled(converted, change)) is None


def test_a_tar_with_a_header_that_we_would_drop_is_not_kept() -> None:
    """An implied directory, a repeated name: a new conversion writes something else."""
    converted = convert_tar(tar_of(FILES), style=STYLE)
    tar = converted.tar
    members = read(tar)
    assert len(members) == 6
    without = tar[512 * 3 :]  # the landmark and its byte, and the directory
    assert read(without)[0].entry.name == b"d/big"
    blob = gzip.compress(without)
    assert kept(blob, converted.layer.toc_digest) is None


def by_word(planned: Planned, read_at: ReadAt) -> Iterator[Span]:
    """A way to cut that looks at the content: a chunk a word."""
    start = 0
    data = read_content(planned, 0, planned.entry.size, read_at)
    for end in (*(at + 1 for at, byte in enumerate(data) if byte == ord(" ")), len(data)):
        if start < end:
            yield Span(start, end - start)
        start = end


def test_files_may_be_cut_by_their_content() -> None:
    """Nothing but layertar/cut.py knows where a file is cut: another way gives a layer whose files are whole, and which is kept."""
    style = Style(by_word, 6)
    converted = convert_tar(tar_of(FILES), style=style)
    chunks = {entry.name: [(chunk.file_offset, chunk.size) for chunk in entry.chunks] for entry in converted.entries}
    assert (chunks[b"d/big"], chunks[b"d/small"]) == ([(0, 7), (7, 5)], [(0, 3)])
    digests = {entry["name"]: entry.get("digest") for entry in json.loads(converted.toc)["entries"] if entry["type"] == "reg"}
    assert digests["d/big"] == digest_of(b"hello, world")
    assert kept(converted.blob, converted.layer.toc_digest, style) == 4
    assert kept(converted.blob, converted.layer.toc_digest) is None
