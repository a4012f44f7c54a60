"""Checked reads return the right bytes or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.store.blocks import BLOCK, SUM_SIZE, read_checked, sums_of
from tests.unit.store.contents import noise

DIGEST = noise(32)
WINDOW = 16 * BLOCK
SIZES = st.one_of(st.integers(1, 3), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, WINDOW - 1, WINDOW, WINDOW + BLOCK + 7]))


@pytest.fixture(scope="module")
def fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path: Path = tmp_path_factory.mktemp("blocks") / "file"
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    yield opened
    os.close(opened)


def write(fd: int, data: bytes, offset: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, offset)


@given(size=SIZES, offset=st.sampled_from([0, 1, 4096]), data=st.data())
def test_any_range_of_a_sound_chunk_is_read(fd: int, size: int, offset: int, data: st.DataObject) -> None:
    """The requested bytes, across block and window borders."""
    chunk = noise(size)
    start = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - start))
    write(fd, chunk, offset)
    assert read_checked(fd, offset, size, DIGEST, sums_of(chunk, DIGEST), start, length) == chunk[start : start + length]


@given(size=SIZES, data=st.data())
@example(size=WINDOW + BLOCK + 7, data=None)
def test_one_flipped_bit_is_found(fd: int, size: int, data: st.DataObject | None) -> None:
    """Wherever it is, and whatever part of the chunk was requested."""
    chunk = bytearray(noise(size))
    sums = sums_of(chunk, DIGEST)
    place, bit = (data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))) if data else (size - 1, 7)
    chunk[place] ^= 1 << bit
    write(fd, bytes(chunk), 0)
    assert read_checked(fd, 0, size, DIGEST, sums, 0, 1) is None


@given(size=SIZES, place=st.integers(0, 31))
def test_sums_belong_to_one_digest(fd: int, size: int, place: int) -> None:
    """Checksums that a damaged row ties to another digest do not match (the seed is the first 8 bytes of the digest)."""
    chunk = noise(size)
    write(fd, chunk, 0)
    other = bytearray(DIGEST)
    other[place % 8] ^= 1
    assert read_checked(fd, 0, size, bytes(other), sums_of(chunk, DIGEST), 0, 1) is None


@pytest.mark.parametrize("change", [lambda sums: sums[:-SUM_SIZE], lambda sums: sums + sums[:SUM_SIZE], lambda _: b""])
def test_sums_of_another_length_are_damage(fd: int, change: type[bytes]) -> None:
    """A list of checksums that is too short does not let the rest of the chunk pass unchecked."""
    chunk = noise(2 * BLOCK)
    write(fd, chunk, 0)
    assert read_checked(fd, 0, len(chunk), DIGEST, change(sums_of(chunk, DIGEST)), 0, 1) is None


def test_a_file_cut_short_is_damage(fd: int) -> None:
    """Even if the requested bytes are still there."""
    chunk = noise(2 * BLOCK)
    write(fd, chunk[:-1], 0)
    assert read_checked(fd, 0, len(chunk), DIGEST, sums_of(chunk, DIGEST), 0, 1) is None


def test_what_the_disk_refuses_is_damage() -> None:
    """An I/O error does not become an exception."""
    fd = os.open("/", os.O_RDONLY)
    try:
        assert read_checked(fd, 0, 10, DIGEST, bytes(8), 0, 1) is None
    finally:
        os.close(fd)
