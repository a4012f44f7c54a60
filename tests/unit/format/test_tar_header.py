"""Written headers: deterministic, and read alike by us, Python and GNU tar."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidTar
from lazyfs.format.entry import Entry
from lazyfs.format.tar_header import END_OF_TAR, header_bytes, header_number, padding
from tests.tars import read

COMPONENT = st.binary(min_size=1, max_size=60).filter(lambda part: not set(part) & set(b"/\0") and part not in {b".", b".."})
NAMES = st.lists(COMPONENT, min_size=1, max_size=8).map(b"/".join).filter(lambda name: b".wh." not in name)
IDS = st.integers(0, 2**32 - 2)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(lambda key: not set(key) & set(b"=\0")),
    st.binary(min_size=1, max_size=80),
    max_size=3,
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Entries of all kinds but hard links, files without their data."""
    kind = draw(st.sampled_from(["dir", "reg", "symlink", "char", "block", "fifo"]))
    device = kind in {"char", "block"}
    return Entry(
        name=draw(NAMES),
        type=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(IDS),
        gid=draw(IDS),
        mtime_ns=draw(st.integers(-(2**66), 2**66)),
        link=draw(NAMES) if kind == "symlink" else b"",
        major=draw(st.integers(0, 4095)) if device else 0,
        minor=draw(st.integers(0, 2**20 - 1)) if device else 0,
        xattrs=tuple(sorted(draw(XATTRS).items())),
    )


@given(st.lists(entries(), max_size=4))
def test_headers_come_back_as_they_were_written(written: list[Entry]) -> None:
    """Every field of every kind of entry survives our own writer and reader."""
    tar = b"".join(map(header_bytes, written)) + END_OF_TAR
    assert [member.entry for member in read(tar)] == written


@given(entries())
def test_python_reads_what_we_write(entry: Entry) -> None:
    """Names, links, ids and attributes, as raw bytes."""
    file = io.BytesIO(header_bytes(entry) + END_OF_TAR)
    with tarfile.open(fileobj=file, encoding="utf-8", errors="surrogateescape") as tar:
        (info,) = tar.getmembers()
    assert info.name.encode("utf-8", "surrogateescape") == entry.name
    assert info.linkname.encode("utf-8", "surrogateescape") == entry.link
    assert (info.mode, info.uid, info.gid) == (entry.mode, entry.uid, entry.gid)
    assert int(info.mtime) == pytest.approx(entry.mtime_ns / 1e9, abs=1 + abs(entry.mtime_ns) / 1e20)


def test_gnu_tar_reads_what_we_write(tmp_path: Path) -> None:
    """A PAX header where it is needed, none where it is not, and ustar's prefix in between."""
    written = [
        Entry(b"", "dir", 0o700),
        Entry(b"d" * 255, "dir"),
        Entry(b"a" * 90 + b"/" + b"b" * 90, "reg", 0o4755, mtime_ns=10**9),
        Entry("ünï/".encode() * 300 + b"leaf", "reg", mtime_ns=-1),
        Entry(b"big", "reg", uid=4_000_000_000, gid=2_097_152),
        Entry(b"link", "symlink", 0o777, link=b"t" * 200),
        Entry(b"hard", "hardlink", link=b"big"),
    ]
    path = tmp_path / "t.tar"
    path.write_bytes(b"".join(map(header_bytes, written)) + END_OF_TAR)
    done = subprocess.run(
        ["tar", "tf", path, "--quoting-style=literal"],
        check=True,
        capture_output=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    shown = [entry.name + (b"/" if entry.type == "dir" else b"") for entry in written]
    assert done.stdout.splitlines() == [b"./", *shown[1:]]
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("entry", "blocks"),
    [
        (Entry(b"a" * 100, "reg"), 1),
        (Entry(b"a" * 99, "dir"), 1),
        (Entry(b"a" * 100, "dir"), 3),
        (Entry(b"p" * 155 + b"/" + b"n" * 100, "reg"), 1),
        (Entry(b"p" * 156 + b"/" + b"n" * 99, "reg"), 3),
        (Entry(b"a" * 101, "reg"), 3),
        (Entry(b"x", "symlink", link=b"l" * 101), 3),
        (Entry(b"x", "reg", uid=0o7777777, gid=0o7777777, mtime_ns=0o77777777777 * 10**9, size=0o77777777777), 1),
        (Entry(b"x", "reg", uid=0o7777777 + 1), 3),
        (Entry(b"x", "reg", size=0o77777777777 + 1), 3),
        (Entry(b"x", "reg", mtime_ns=1), 3),
        (Entry("é".encode(), "reg"), 3),
    ],
)
def test_pax_is_written_only_where_it_is_needed(entry: Entry, blocks: int) -> None:
    """A ustar header alone, if it can express everything."""
    assert len(header_bytes(entry)) == blocks * 512


def test_headers_do_not_change() -> None:
    """A golden digest: other bytes here are other digests for every image ever converted."""
    entry = Entry("dir/é".encode(), "reg", 0o4755, 2**32 - 2, 5, -1_500_000_000, 7, xattrs=((b"user.a", b"\0\n="),))
    plain = Entry(b"p" * 60 + b"/" + b"n" * 60, "char", 0o600, 1, 2, 3 * 10**9, major=7, minor=8)
    data = header_bytes(entry) + header_bytes(plain) + header_bytes(Entry(b"", "dir"))
    assert hashlib.sha256(data).hexdigest() == "05833b319259335689b047dd1d5d5ece6fd75607b013be4962b56bd6af7db947"


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0junk", 0o644),
        (bytes(8), 0),
        (b"        ", 0),
        (b"77777777", 0o77777777),
        (b"\x80" + (2**40).to_bytes(11, "big"), 2**40),
        (b"\xff" * 12, -1),
        (b"\xff" * 11 + b"\xfb", -5),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, number: int) -> None:
    """With blanks and NULs around them, or none at all."""
    assert header_number(field, "t") == number


@pytest.mark.parametrize("field", [b"0000648\0", b"-000001\0", b"0x00001\0", b"abc\0\0\0\0\0", b"1_0\0\0\0\0\0"])
def test_what_is_no_number_is_refused(field: bytes) -> None:
    """Digits of another base, signs, and Python's underscores."""
    with pytest.raises(InvalidTar, match=r"^t: the header holds"):
        header_number(field, "t")


@given(st.integers(0, 10_000))
def test_padding_fills_the_block(size: int) -> None:
    """Never a whole block."""
    assert (size + padding(size)) % 512 == 0
    assert 0 <= padding(size) < 512


def test_a_header_depends_on_nothing_but_the_entry() -> None:
    """A copy with other chunks has the same header."""
    entry = Entry(b"a", "reg", size=3)
    assert header_bytes(entry) == header_bytes(msgspec.structs.replace(entry, chunks=()))
