"""Sparse files: GNU tar's four ways to store them, against GNU tar itself; and maps that lie."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lazyfs.errors import InvalidTar
from lazyfs.format.sparse import Extent, place
from tests.tars import END, content, file, header, padded, pax, read

FORMS = [
    ["--format=gnu"],
    ["--format=pax", "--sparse-version=0.0"],
    ["--format=pax", "--sparse-version=0.1"],
    ["--format=pax", "--sparse-version=1.0"],
]


def make_sparse(path: Path, pieces: list[tuple[int, bytes]], size: int) -> bytes:
    """A file with holes, and what it reads as."""
    whole = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
            whole[offset : offset + len(data)] = data
    return bytes(whole)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[-1])
@pytest.mark.parametrize(
    ("pieces", "size"),
    [
        ([(1 << 20, b"mid")], 2 << 20),
        ([(0, b"begin"), (1 << 20, b"end")], (1 << 20) + 3),
        ([], 1 << 20),
        # More pieces than fit into the header (4) and into one continuation block (21).
        ([(number << 16, b"%05d" % number) for number in range(60)], 64 << 16),
    ],
    ids=["middle", "both-ends", "only-a-hole", "many"],
)
def test_gnu_tar_sparse_files_become_ordinary_ones(
    tmp_path: Path, form: list[str], pieces: list[tuple[int, bytes]], size: int
) -> None:
    """Name, real size and every byte, in every form; the file behind it is found as well."""
    expected = make_sparse(tmp_path / "sparse", pieces, size)
    (tmp_path / "after").write_bytes(b"after" * 1000)
    command = ["tar", "cf", "-", "--sparse", "--hole-detection=raw", *form, "-C", tmp_path, "sparse", "after"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(data) < 600_000 < size
    sparse, after = read(data)
    assert (sparse.entry.name, sparse.entry.type, sparse.entry.size) == (b"sparse", "reg", size)
    assert content(sparse, data) == expected
    assert content(after, data) == b"after" * 1000


def test_a_long_name_of_a_sparse_file_is_its_own(tmp_path: Path) -> None:
    """PAX 1.0 and 0.1 keep the real name in a record, because the header's is a decoy."""
    name = "n" * 200
    make_sparse(tmp_path / name, [(1 << 20, b"x")], 2 << 20)
    for form in FORMS:
        command = ["tar", "cf", "-", "--sparse", *form, "-C", tmp_path, name]
        (member,) = read(subprocess.run(command, check=True, capture_output=True).stdout)
        assert os.fsdecode(member.entry.name) == name


def old(size: int, real: int, *pieces: tuple[int, int], extended: int = 0) -> bytes:
    """An old GNU sparse header."""
    table = b"".join(b"%011o\0%011o\0" % piece for piece in pieces).ljust(96, b"\0")
    # The map lies across what ustar calls prefix and rest; it begins 41 bytes into the prefix.
    area = bytes(41) + table + bytes([extended]) + b"\x80" + real.to_bytes(11, "big")
    area = area.ljust(167, b"\0")
    return header(b"s", b"S", size, magic=b"ustar  \0", prefix=area[:155], rest=area[155:])


def test_an_old_map_by_hand() -> None:
    """Two pieces, a hole at either side."""
    data = old(6, 100, (10, 3), (50, 3)) + padded(b"abcdef") + END
    (member,) = read(data)
    assert content(member, data) == bytes(10) + b"abc" + bytes(37) + b"def" + bytes(47)


@pytest.mark.parametrize(
    "data",
    [
        old(6, 100, (50, 3), (10, 3)) + padded(b"abcdef"),
        old(6, 100, (10, 4), (12, 2)) + padded(b"abcdef"),
        old(6, 55, (10, 3), (53, 3)) + padded(b"abcdef"),
        old(6, 100, (10, 3)) + padded(b"abcdef"),
        old(3, 100, (10, 3), (20, 3)) + padded(b"abc"),
        old(0, 100, extended=1) + b"x" * 512,
        pax((b"GNU.sparse.map", b"10,3,20"), (b"GNU.sparse.size", b"100")) + file(b"s", b"abc"),
        pax((b"GNU.sparse.map", b"10,x"), (b"GNU.sparse.size", b"100")) + file(b"s", b"abc"),
        pax((b"GNU.sparse.map", b"10,3")) + file(b"s", b"abc"),
        pax((b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.offset", b"10"), (b"GNU.sparse.size", b"100")) + file(b"s", b"abc"),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"100")) + file(b"s", padded(b"2\n10\n3\n")),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"100")) + file(b"s", padded(b"x\n")),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"100")) + file(b"s", b"7" * 1024),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"100")) + file(b"s", b"1"),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"100")) + file(b"s", padded(b"99999999\n")),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"100")) + file(b"s", padded(b"1\n10\n3\n") + b"ab"),
    ],
)
def test_a_map_that_lies_is_refused(data: bytes) -> None:
    """Out of order, overlapping, beyond the end, longer or shorter than the data, no numbers, endless."""
    with pytest.raises(InvalidTar, match=r"^layer 1"):
        read(data + END)


@pytest.mark.parametrize(
    ("real", "count", "blob"), [(65 << 30, 1, 1 << 40), (257 << 20, 1, 1999), (2 << 20, 150, 1999), (2_000_000, 200, 300_000)]
)
def test_holes_do_not_make_bombs(real: int, count: int, blob: int) -> None:
    """64 GiB, or 1000 times the blob, or 256 MiB, is the most that all holes of a layer may become."""
    data = (old(3, real, (10, 3)) + padded(b"abc")) * count + END
    with pytest.raises(InvalidTar, match=f"^layer 1: 's' has holes and would become {real} bytes: .*, which is the limit for a"):
        read(data, blob_size=blob)


def test_a_thousand_times_the_blob_is_allowed() -> None:
    """The bounds themselves are inside."""
    data = old(3, (256 << 20) + 3, (10, 3)) + padded(b"abc")
    assert read(data + END, blob_size=1)[0].entry.size == (256 << 20) + 3
    assert len(read(2 * data + END, blob_size=(2 << 28) // 1000 + 1)) == 2


def test_places_are_in_the_tar() -> None:
    """Empty pieces mark an end, and place nothing."""
    assert place([(5, 2), (10, 0), (20, 4)], 24, 512, 6, "t") == (Extent(5, 512, 2), Extent(20, 514, 4))
