"""A written layer: the blob, its digests, its TOC."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.layer import Style, write_layer
from lazyfs.errors import InvalidTar
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.member import inflate_member
from lazyfs.format.sparse import Extent
from lazyfs.layertar.cut import every
from lazyfs.layertar.plan import Planned
from lazyfs.layertar.tree import LowerTree
from tests.tars import END
from tests.unit.converter.making import LAYERS, THREADS, Converted, Item, convert_tar, tar_of

FILES: list[Item] = [
    (Entry(b"d", "dir", 0o711, 1, 2, 3 * 10**9), b""),
    (Entry(b"d/empty", "reg"), b""),
    (Entry("d/ünï".encode(), "reg", 0o4755, 2**32 - 2, 0, -1_500_000_000, 12, xattrs=((b"user.k", b"\0v"),)), b"hello, world"),
    (Entry(b"d/l\xe9", "hardlink", link="d/ünï".encode()), b""),
    (Entry(b"s", "symlink", 0o777, link=b"d/empty"), b""),
    (Entry(b"dev", "char", 0o600, major=1, minor=3), b""),
    (Entry(b"big", "reg", size=3000), bytes(range(250)) * 12),
]


def check(converted: Converted) -> None:
    """What holds for every layer."""
    blob, layer = converted.blob, converted.layer
    assert (digest_of(blob), len(blob)) == (layer.digest, layer.size)
    assert (digest_of(converted.tar), len(converted.tar)) == (layer.diff_id, layer.tar_size)
    assert digest_of(converted.toc) == layer.toc_digest
    assert converted.tar.endswith(END)
    entries = converted.entries
    assert [msgspec.structs.replace(entry, chunks=()) for entry in entries] == [planned.entry for planned in converted.plan]
    assert layer.entries == len(entries)
    assert layer.chunks == sum(len(entry.chunks) for entry in entries)
    members = members_of(blob)
    for entry, (_, data) in zip(entries, converted.items, strict=True):
        for chunk in entry.chunks:
            assert chunk.inner == 0
            assert chunk.member in members
            inflated = inflate_member(blob[chunk.member : chunk.member_end], chunk.size, "chunk")[: chunk.size]
            assert inflated == data[chunk.file_offset : chunk.file_offset + chunk.size]
            assert hashlib.sha256(inflated).digest() == chunk.digest
    for row in json.loads(converted.toc)["entries"]:
        if row["type"] == "reg" and not row["name"].startswith("."):
            data = next(data for entry, data in converted.items if entry.type == "reg" and digest_of(data) == row["digest"])
            assert row.get("size", 0) == len(data)


def members_of(blob: bytes) -> set[int]:
    """Where gzip members begin."""
    found = set()
    offset = 0
    while offset < len(blob):
        found.add(offset)
        stream = zlib.decompressobj(31)
        stream.decompress(blob[offset:])
        offset = len(blob) - len(stream.unused_data)
    return found


@given(LAYERS, st.integers(1, 8))
@settings(max_examples=60)
def test_whatever_the_layer_its_toc_describes_it(layers: list[list[Item]], chunk_size: int) -> None:
    """Digests are of what they say, and every chunk is where the TOC says."""
    tree = LowerTree()
    for number, layer in enumerate(layers):
        try:
            converted = convert_tar(tar_of(layer), tree, number, Style(every(chunk_size), 6))
        except InvalidTar:
            return
        check(converted)


@given(LAYERS)
@settings(max_examples=60)
def test_converting_again_changes_nothing(layers: list[list[Item]]) -> None:
    """The order of a converted layer is its own plan, byte for byte."""
    first, second = LowerTree(), LowerTree()
    for number, layer in enumerate(layers):
        try:
            once = convert_tar(tar_of(layer), first, number)
        except InvalidTar:
            return
        assert convert_tar(once.tar, second, number).blob == once.blob


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_workers_does_not_show(workers: int) -> None:
    """Golden digests: the same bytes on every machine, for ever (until the compressing library is changed on purpose)."""
    converted = convert_tar(tar_of(FILES), style=Style(every(1000), 6), workers=workers)
    check(converted)
    assert converted.layer.diff_id == "sha256:deef3bb0de129a378c31acf3046672dfd12de6773514472e78fbf1d3098daa2d"
    assert converted.layer.toc_digest == "sha256:20c4f797da9d01a199b1e654ffd9a38cedeff25186389b4325ffbfaa6aef44b0"
    assert converted.layer.digest == "sha256:c35e0adb96ee76dd6e053d894b32c7ad3e90fd9fd4b826e8e7c29ea4ffd6a1fd"


def test_an_empty_layer_survives() -> None:
    """It holds a landmark and a TOC."""
    converted = convert_tar(END)
    check(converted)
    assert [entry.name for entry in converted.entries] == [b".no.prefetch.landmark"]


def test_a_landmark_begins_its_own_member() -> None:
    """Its offset is how far to prefetch: behind all that is prioritised, before all the rest."""
    converted = convert_tar(tar_of(FILES), prioritized=[b"big", b"d/l\xe9"])
    entries = {entry.name: entry for entry in converted.entries}
    (landmark,) = entries[b".prefetch.landmark"].chunks
    early = [entry for name, entry in entries.items() if name in {b"big", "d/ünï".encode()}]
    assert all(chunk.member < landmark.member for entry in early for chunk in entry.chunks)
    assert entries[b".prefetch.landmark"].mode == 0


def test_a_bad_read_leaves_no_thread_behind() -> None:
    """The error comes out, and nothing reads the spool any more."""
    reading = []

    def read_at(_offset: int, _size: int) -> bytes:
        reading.append(1)
        raise OSError("the disk is gone")

    plan = [Planned(Entry(b"f%d" % number, "reg", size=1 << 20), (Extent(0, 0, 1 << 20),)) for number in range(20)]
    with ThreadPoolExecutor(2) as threads:
        with pytest.raises(OSError, match="the disk is gone"):
            write_layer(plan, read_at, Style(every(1 << 20), 6), threads, 2, lambda _count: None)
        settled = len(reading)
        threads.submit(lambda: None).result()
        assert len(reading) == settled


def test_progress_may_end_the_writing() -> None:
    """So a thread learns that its caller was cancelled."""

    class GiveUpError(Exception):
        pass

    def give_up(_count: int) -> None:
        raise GiveUpError

    plan = [Planned(Entry(b"f", "reg", size=5), (Extent(0, 0, 5),))]
    with pytest.raises(GiveUpError):
        write_layer(plan, lambda _offset, size: bytes(size), Style(every(5), 6), THREADS, 2, give_up)


def test_any_gunzip_and_any_tar_read_it() -> None:
    """gzip, and Python's own."""
    converted = convert_tar(tar_of(FILES))
    assert gzip.decompress(converted.blob) == converted.tar
    assert {entry.name for entry, _ in converted.items} == {entry.name for entry, _ in FILES} | {b".no.prefetch.landmark"}
