"""The footer: 51 bytes that say where the TOC is."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidToc, NotLazy
from lazyfs.format.footer import FOOTER_SIZE, build_footer, parse_footer


@given(st.integers(0, 2**40))
def test_round_trip(offset: int) -> None:
    """What is written is read, and is an empty gzip member."""
    footer = build_footer(offset)
    assert len(footer) == FOOTER_SIZE
    assert parse_footer(footer, offset + 1000, "layer") == offset
    assert gzip.decompress(footer) == b""


def test_golden_bytes() -> None:
    """Byte for byte what docs/estargz.md of stargz-snapshotter describes."""
    expected = "1f8b08040000000000ff1a0053471600" + b"0000000000001234STARGZ".hex() + "010000ffff" + "00" * 8
    assert build_footer(0x1234).hex() == expected


@pytest.mark.parametrize("footer", [b"", bytes(51), gzip.compress(b"x" * 100)[-51:], build_footer(5)[1:] + b"\0"])
def test_ordinary_layer(footer: bytes) -> None:
    """What has no footer of ours is an ordinary layer, named."""
    with pytest.raises(NotLazy, match="layer 7 is an ordinary layer"):
        parse_footer(footer, 1000, "layer 7")


def test_offset_outside_the_blob() -> None:
    """A footer that points behind itself is refused."""
    with pytest.raises(InvalidToc, match="outside the blob"):
        parse_footer(build_footer(949), 1000, "x")
    broken = build_footer(5).replace(b"0000000000000005", b"zzzzzzzzzzzzzzzz")
    with pytest.raises(InvalidToc, match="not a hexadecimal"):
        parse_footer(broken, 1000, "x")
