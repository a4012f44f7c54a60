"""Gzip members: what goes in comes out, and a bomb costs no more than its chunk."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidInput
from lazyfs.format.member import compress_member, inflate_member


@given(st.binary(max_size=2000), st.integers(1, 12))
def test_members_are_ordinary_gzip(data: bytes, level: int) -> None:
    """Python's gzip reads what we write."""
    member = compress_member(data, level)
    assert gzip.decompress(member) == data
    assert member[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


@given(st.binary(min_size=1, max_size=5000), st.data())
def test_a_prefix_can_be_read(data: bytes, draw: st.DataObject) -> None:
    """Any length up to the whole comes back, whatever follows the member."""
    length = draw.draw(st.integers(0, len(data)))
    for tail in (b"", b"junk", gzip.compress(b"next")):
        assert bytes(inflate_member(compress_member(data) + tail, length, "x")[:length]) == data[:length]


def test_golden_bytes() -> None:
    """The same bytes on any machine: a change here changes every image's digests."""
    assert compress_member(b"lazyfs" * 100).hex() == GOLDEN


GOLDEN = "1f8b08000000000000ffcb49acaa4c2bce19254749aa9200c9f9368758020000"


def test_bomb_costs_no_more_than_its_chunk() -> None:
    """A member that would inflate to a gigabyte is read for its first bytes only."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    bomb = b"".join(compressor.compress(zeros) for _ in range(256)) + compressor.flush()
    tracemalloc.start()
    inflated = inflate_member(bomb, 1000, "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bytes(inflated[:1000]) == bytes(1000)
    assert peak < 4 << 20


def test_a_lying_trailer_is_not_believed() -> None:
    """An ISIZE of our choice leads to the stream, not to a wrong answer."""
    data = bytes(range(256)) * 40
    member = bytearray(compress_member(data))
    for claim in (0, 1, 5000, len(data) + 7, 1 << 31):
        member[-4:] = claim.to_bytes(4, "little")
        assert bytes(inflate_member(bytes(member), 5000, "x")[:5000]) == data[:5000]


@pytest.mark.parametrize("broken", [b"", b"\x1f", b"not gzip at all, not even nearly", compress_member(b"x" * 100)[:-30]])
def test_broken_member_is_named(broken: bytes) -> None:
    """What is not a gzip, or ends early, is an error that names the place."""
    with pytest.raises(InvalidInput, match="somewhere"):
        inflate_member(broken, 100, "somewhere")


def test_member_that_ends_before_its_chunk() -> None:
    """Fewer bytes than the TOC promised are an error with both numbers."""
    with pytest.raises(InvalidInput, match="ends after 3 of 100 bytes"):
        inflate_member(compress_member(b"abc"), 100, "x")


@pytest.mark.parametrize("member", [b"\1\0\0\0", b"\x1f\x8b\x08\0\0\0\0\0\0\xff\1\0\0\0", b"\x1f\x8b\1\0\0\0"])
def test_a_member_shorter_than_any(member: bytes) -> None:
    """It claims the right length, and has no room for a header and a trailer: found by the fuzzer, as a ValueError of the library's."""
    with pytest.raises(InvalidInput, match="somewhere"):
        inflate_member(member, 1, "somewhere")
