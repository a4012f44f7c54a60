"""What one layer may cost: each bound is charged before the memory or time is spent, and errors have its numbers."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from lazyfs.errors import InvalidInput, InvalidTar, InvalidToc
from lazyfs.format import bounds
from lazyfs.format.bounds import LOOK_EVERY, MAX_STEPS, Bounds, ImageBounds
from lazyfs.format.member import inflate_member
from lazyfs.format.pax import record
from lazyfs.format.tar import read_tar
from lazyfs.format.toc import parse_toc
from tests.tars import header, padded

DIGEST = "sha256:" + 64 * "a"
OTHER = "sha256:" + 64 * "b"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth of the real bound: the same in less time. tests/bad/ tries the real one, with real memory."""
    monkeypatch.setattr(bounds, "DESCRIPTION", 4 * MIB)


def toc(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "entries": entries}).encode()


def file(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "reg", "size": size, "offset": 0, "chunkDigest": DIGEST, **more}


class Repeated:
    """A tar of one part, over and over, as `read_at`; it takes no memory."""

    def __init__(self, part: bytes, count: int) -> None:
        self.part = part
        self.size = len(part) * count

    def read_at(self, offset: int, size: int) -> bytes:
        start = offset % len(self.part)
        count = -(-(start + size) // len(self.part))
        return (self.part * count)[start : start + min(size, self.size - offset)]


def peak(call: Callable[[], object]) -> tuple[int, InvalidInput]:
    """The most memory that Python's objects took while `call` failed, and how it failed."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput) as caught:
            call()
        return tracemalloc.get_traced_memory()[1], caught.value
    finally:
        tracemalloc.stop()


# TOCs


def test_chunks_of_one_member_may_not_overlap() -> None:
    """Slices of one member would each be kept: 200 files of 17 MB out of 17 KB."""
    slices = [file(f"{number}", 10_000, innerOffset=number) for number in range(2)]
    with pytest.raises(InvalidToc, match=r"^layer 1: two chunks of the member at offset 0 overlap, 10000 bytes at 0 and 10000 "):
        parse_toc(toc(*slices), 100, "layer 1")


@pytest.mark.parametrize("change", [{"chunkDigest": OTHER}, {"innerOffset": 1}, {"size": 11}])
def test_only_identical_chunks_may_overlap(change: dict[str, Any]) -> None:
    """The same bytes may have several names; anything else of the same place is a lie."""
    same = [file("a", 10), file("b", 10), file("c", 20, innerOffset=10), file("d", 10)]
    assert len(parse_toc(toc(*same), 100, "layer 1")) == 4
    with pytest.raises(InvalidToc, match="overlap"):
        parse_toc(toc(*same, file("e", 10) | change), 100, "layer 1")


def test_a_member_has_room_for_its_chunks() -> None:
    """1032 bytes for each compressed one: deflate makes no more. The next member ends this one."""
    assert parse_toc(toc(file("a", 1032 * 100)), 100, "layer 1")
    for inner, end in ((1, 100), (0, 99)):
        with pytest.raises(
            InvalidToc, match=f"ends {1032 * 100 + inner} bytes into the member at offset 0, and that member's {end} "
        ):
            parse_toc(toc(file("a", 1032 * 100, innerOffset=inner), file("b", 5, offset=end)), 200, "layer 1")


def test_files_of_the_same_chunks_are_bounded_together() -> None:
    """A file of one chunk a thousand times over, and another a thousand and one times, share no object."""
    size = 16 * MIB
    more = [
        {"name": "f", "type": "chunk", "chunkOffset": n * size, "chunkSize": size, "chunkDigest": DIGEST} for n in range(1, 16)
    ]
    one = [file("f", 16 * size, chunkSize=size), *more]
    assert parse_toc(toc(*one), 100_000, "layer 1")
    with pytest.raises(InvalidToc, match="its files have more than 268435456 bytes together"):
        parse_toc(toc(*one, file("g", 1)), 100_000, "layer 1")


def test_what_was_accepted_before_stays() -> None:
    """A layer that is mounted was accepted by a version that knew no such bounds."""
    slices = [file(f"{number}", 10_000, innerOffset=number) for number in range(2)]
    deep = file("/".join("d" * 2000), 5, offset=1)
    entries = parse_toc(toc(*slices, deep), 2, "layer 1", arrived=0, accepted=True)
    assert [chunk.member_end for entry in entries for chunk in entry.chunks] == [1, 1, 2]


def many_entries() -> bytes:
    return b'{"version":1,"entries":[' + b",".join(b'{"name":"%d","type":"dir"}' % number for number in range(9000)) + b"]}"


def many_xattrs() -> bytes:
    xattrs = ",".join(f'"user.{number}":""' for number in range(40_000))
    return b'{"version":1,"entries":[{"name":"a","type":"dir","xattrs":{' + xattrs.encode() + b"}}]}"


def far_too_many_xattrs() -> bytes:
    return many_xattrs()[:-4] + b"," + b",".join([b'"":""'] * 200_000) + b"}}]}"


def long_strings() -> bytes:
    """Each would take four times its bytes: one character of four bytes makes all others as wide."""
    name = 16_000 * "x" + "\U0001f600"
    return json.dumps({"version": 1, "entries": [{"name": name, "type": "dir"}] * 200}, ensure_ascii=False).encode()


def numbers() -> bytes:
    return b'{"version":1,"entries":[' + b"1," * 500_000 + b"1]}"


def chunk_entries() -> bytes:
    return toc(file("a", 10**9, chunkSize=1)).replace(b"]}", b',{"name":"","type":"chunk"}' * 20_000 + b"]}")


def deep_names() -> bytes:
    return toc(*({"name": "/".join([str(number), *("d" * 2000)]), "type": "dir"} for number in range(100)))


@pytest.mark.parametrize(
    "make",
    [many_entries, many_xattrs, far_too_many_xattrs, long_strings, numbers, chunk_entries, deep_names],
    ids=lambda make: make.__name__,
)
def test_a_toc_costs_what_its_member_may(make: Callable[[], bytes]) -> None:
    """A bound and 32 times the compressed member: about that is spent before it is refused."""
    data = make()
    most, error = peak(lambda: parse_toc(data, 100, "layer 1", arrived=1000))
    assert isinstance(error, InvalidToc) and str(error).startswith("layer 1: ")
    assert most < 12 * MIB


def test_a_toc_that_arrived_may_cost_more() -> None:
    """The bound grows with what really came."""
    assert len(parse_toc(many_entries(), 100, "layer 1", arrived=MIB)) == 9000


# Tars


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (header(), "take more than 4194336 bytes"),
        (header(b"x", b"L", 1 * MIB) + bytes(MIB), "take more than 4194336 bytes"),
        (header(b"x", b"g") + header(), "take more than 4194336 bytes"),
        (header(b"x", b"x", 65_536) + record(b"SCHILY.xattr.user.a", bytes(65_509)), "take more than 4194336 bytes"),
        (header(b"a", b"2", link=b"b"), "take more than 4194336 bytes"),
    ],
    ids=["entries", "long names", "global headers", "attributes", "links"],
)
def test_a_tar_costs_what_its_blob_may(part: bytes, words: str) -> None:
    """However it spends it: headers count as entries, and extended headers with all that they hold."""
    tar = Repeated(part, 4_000_000)
    most, error = peak(lambda: list(read_tar(tar.read_at, tar.size, 1, "layer 1")))
    assert isinstance(error, InvalidTar) and words in str(error)
    assert most < 12 * MIB


def test_attributes_of_a_tar_are_counted() -> None:
    """A value is kept with its file, so it is counted with its bytes; what is the limit says so."""
    pax = record(b"SCHILY.xattr.user.a", bytes(65_000))
    part = header(b"x", b"x", len(pax)) + padded(pax) + header(b"a")
    tar = Repeated(part, 200)
    most, error = peak(lambda: list(read_tar(tar.read_at, tar.size, 10_000, "layer 1")))
    assert "take more than 4514304 bytes, which is the limit for 10000 bytes of input" in str(error)
    assert most < 8 * MIB
    assert len(list(read_tar(tar.read_at, tar.size, MIB, "layer 1"))) == 200


def test_pieces_of_sparse_files_are_counted() -> None:
    """A map of a megabyte names 200,000 pieces of nothing."""
    text = b",".join([b"0,0"] * 200_000)
    pax = record(b"GNU.sparse.size", b"5") + record(b"GNU.sparse.map", text)
    tar = Repeated(header(b"x", b"x", len(pax)) + padded(pax) + header(b"a"), 100)
    _, error = peak(lambda: list(read_tar(tar.read_at, tar.size, 10, "layer 1")))
    assert "take more than" in str(error)


# The account itself


def test_steps_are_counted_and_looked_at() -> None:
    """Every 1,000 steps somebody may say that it is enough; after ten million the layer is refused."""
    looks = []
    account = Bounds(5, "layer 1", InvalidTar, lambda: looks.append(1))
    for _ in range(10 * LOOK_EVERY):
        account.step()
    assert len(looks) == 10
    account.step(MAX_STEPS - 10 * LOOK_EVERY)
    with pytest.raises(InvalidTar, match="layer 1: its names and links take more than 10000000 steps to follow"):
        account.step(LOOK_EVERY)


def test_parsing_can_be_cancelled() -> None:
    """Both readers check for cancellation, and stop."""

    def enough() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parse_toc(many_entries(), 100, "layer 1", check_cancelled=enough)
    tar = Repeated(header(), LOOK_EVERY + 1)
    with pytest.raises(KeyboardInterrupt):
        list(read_tar(tar.read_at, tar.size, 10, "layer 1", bounds=Bounds(10, "layer 1", InvalidTar, enough)))


@pytest.mark.parametrize("length", [-1, -(1 << 40), 1032 * 60 + 1, 1 << 62])
def test_no_member_has_such_a_length(length: int) -> None:
    """A negative one would inflate without a bound, and deflate makes at most 1032 bytes of one."""
    with pytest.raises(InvalidInput, match=f"^x: the gzip member of 60 bytes cannot inflate to {length} bytes"):
        inflate_member(bytes(60), length, "x")


def test_an_entry_of_a_toc_shares_its_type() -> None:
    """35,000 entries need no 35,000 strings that say `reg`."""
    first, second = parse_toc(toc({"name": "a", "type": "dir"}, {"name": "b", "type": "dir"}), 10, "layer 1")
    assert first.type is second.type


def test_layers_of_one_image_share_a_bound() -> None:
    """What arrives of each counts for all; one that is refused takes nothing from the others, and other images have their own."""
    image = ImageBounds()

    def take(size: int, arrived: int, of: ImageBounds) -> None:
        account = Bounds(arrived, "layer 2", InvalidToc, image=of)
        account.describe(size)
        account.settle()

    take(3 * MIB, 1000, image)
    with pytest.raises(InvalidToc, match="for 10 bytes of input, in addition to the image's other layers"):
        take(MIB + 32_321, 10, image)
    take(MIB + 32_320, 10, image)
    take(320, 10, image)
    with pytest.raises(InvalidToc, match="more than 0 bytes"):
        take(1, 0, image)
    take(4 * MIB, 0, ImageBounds())


def test_layers_that_are_parsed_at_the_same_time_share_a_bound() -> None:
    """They do not see each other while they are parsed: the one that would be too much is refused when it is counted, and not counted."""
    image = ImageBounds()
    accounts = [Bounds(0, f"layer {number}", image=image) for number in range(3)]
    for account in accounts:
        account.describe(3 * MIB)
    accounts[0].settle()
    for account in accounts[1:]:
        with pytest.raises(InvalidInput, match="in addition to the image's other layers"):
            account.settle()
    small = Bounds(0, "small", image=image)
    small.describe(MIB)
    small.settle()
    accepted = Bounds(0, "accepted before", image=image, enforced=False)
    accepted.describe(4 * MIB)
    accepted.settle()
