"""Reading tars: all dialects, against Python's tarfile and GNU tar; and what is refused."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidTar
from lazyfs.format.entry import KEPT_OWNER
from lazyfs.format.tar import clean_name
from tests.tars import END, complaint, content, file, header, info, names, padded, pax, read, written

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("dialect", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tars_formats(tmp_path: Path, dialect: str) -> None:
    """Every type, long names where the format has them, contents and modes."""
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "dir" / "file").write_bytes(b"content" * 100)
    (tree / "dir" / "file").chmod(0o4755)
    (tree / "empty").touch()
    (tree / "link").symlink_to("dir/file")
    (tree / "hard").hardlink_to(tree / "dir" / "file")
    long_names = dialect in {"oldgnu", "gnu", "posix"}
    if long_names:
        (tree / ("n" * 255)).write_bytes(b"long")
        (tree / "far").symlink_to("t" * 300)
    if dialect != "v7":
        os.mkfifo(tree / "fifo")
    command = [
        "tar",
        "cf",
        "-",
        f"--format={dialect}",
        "--sort=name",
        "--owner=:7",
        "--group=:1234567",
        "--mtime=@1700000000",
        "-C",
        tree,
        ".",
    ]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    found = {member.entry.name: member for member in read(data)}
    assert found[b""].entry.type == "dir"
    assert found[b"dir"].entry.type == "dir"
    assert content(found[b"dir/file"], data) == b"content" * 100
    assert (found[b"dir/file"].entry.mode, found[b"dir/file"].entry.gid) == (0o4755, 1234567)
    assert found[b"dir/file"].entry.mtime_ns == 1_700_000_000 * 10**9
    assert (found[b"empty"].entry.size, found[b"empty"].extents) == (0, ())
    assert (found[b"link"].entry.type, found[b"link"].entry.link) == ("symlink", b"dir/file")
    assert (found[b"hard"].entry.type, found[b"hard"].entry.link) == ("hardlink", b"dir/file")
    if long_names:
        assert content(found[b"n" * 255], data) == b"long"
        assert found[b"far"].entry.link == b"t" * 300
    if dialect != "v7":
        assert found[b"fifo"].entry.type == "fifo"


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=70).filter(
    lambda name: name not in {".", ".."} and not name.startswith(".wh.") and len(name.encode()) < 256
)


@st.composite
def infos(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    """A TarInfo that GNU and PAX formats can write."""
    kind = draw(st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]))
    made = info("/".join(draw(st.lists(NAME, min_size=1, max_size=5))), kind, mode=draw(st.integers(0, 0o7777)))
    made.uid, made.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    made.mtime = draw(st.integers(-(2**40), 2**40))
    if kind == tarfile.SYMTYPE:
        made.linkname = draw(NAME)
    if kind == tarfile.CHRTYPE:
        made.devmajor, made.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20))
    return made, draw(st.binary(max_size=2000)) if kind == tarfile.REGTYPE else b""


@given(st.lists(infos(), max_size=5), st.sampled_from(["gnu", "pax"]))
def test_we_read_what_python_writes(items: list[tuple[tarfile.TarInfo, bytes]], dialect: str) -> None:
    """Every field, of every type, in the two formats that can express all of them."""
    data = written(*items, dialect=FORMATS[dialect])
    found = read(data)
    kinds = {
        tarfile.REGTYPE: "reg",
        tarfile.DIRTYPE: "dir",
        tarfile.SYMTYPE: "symlink",
        tarfile.CHRTYPE: "char",
        tarfile.FIFOTYPE: "fifo",
    }
    for member, (made, body) in zip(found, items, strict=True):
        entry = member.entry
        assert (entry.name.decode(), entry.type, entry.mode) == (made.name, kinds[made.type], made.mode)
        assert (entry.uid, entry.gid, entry.mtime_ns) == (made.uid, made.gid, int(made.mtime) * 10**9)
        assert entry.link.decode() == made.linkname
        assert (entry.major, entry.minor) == (made.devmajor, made.devminor)
        assert content(member, data) == body


def test_pax_records_outrank_the_header() -> None:
    """Path, link, size, ids, time with nanoseconds, and attributes with any bytes in them."""
    data = (
        pax(
            (b"path", b"long/name\xe9"),
            (b"size", b"3"),
            (b"uid", b"4000000000"),
            (b"gid", b"4294967294"),
            (b"mtime", b"-1.25"),
            (b"SCHILY.xattr.user.b", b"v\0\n=\xff"),
            (b"SCHILY.xattr.user.a", b""),
            (b"comment", b"ignored"),
        )
        + header(b"short")
        + padded(b"abc")
        + END
    )
    (member,) = read(data)
    entry = member.entry
    assert (entry.name, entry.size, entry.uid, entry.gid) == (b"long/name\xe9", 3, 4_000_000_000, 2**32 - 2)
    assert entry.mtime_ns == -1_250_000_000
    assert entry.xattrs == ((b"user.a", b""), (b"user.b", b"v\0\n=\xff"))
    assert content(member, data) == b"abc"


def test_global_headers_are_passed_over() -> None:
    """Go does not apply them, so no pull of the image shows them applied."""
    (member,) = read(pax((b"path", b"other"), (b"uid", b"5"), flag=b"g") + file(b"a", b"x") + END)
    assert (member.entry.name, member.entry.uid) == (b"a", 0)


def test_vendor_headers_and_volume_labels() -> None:
    """Solaris writes PAX headers as X; a volume label is not an entry."""
    data = header(b"label", b"V") + pax((b"path", b"b"), flag=b"X") + file(b"a", b"x") + END
    assert names(read(data)) == [b"b"]


def test_contiguous_files_and_old_directories() -> None:
    """7 is a file; a name that ends in a slash is a directory, whatever a v7 header can say."""
    data = file(b"c", b"data", b"7") + header(b"d/", b"\0") + header(b"e/", b"0") + file(b"f", b"x", b"\0") + END
    found = read(data)
    assert [(member.entry.name, member.entry.type) for member in found] == [
        (b"c", "reg"),
        (b"d", "dir"),
        (b"e", "dir"),
        (b"f", "reg"),
    ]
    assert content(found[0], data) == b"data"


def test_links_and_directories_have_no_data_whatever_their_size_says() -> None:
    """As in Go: the next header follows at once."""
    data = file(b"a", b"x") + header(b"l", b"1", 5000, b"a") + header(b"d", b"5", 5000) + file(b"z", b"y") + END
    assert names(read(data)) == [b"a", b"l", b"d", b"z"]


def test_stars_prefix_ends_where_its_times_begin() -> None:
    """star puts times behind 131 bytes of prefix."""
    prefix = b"some/dir".ljust(131, b"\0") + b"00000000000 00000000000 "[:24]
    assert names(read(header(b"f", prefix=prefix, rest=bytes(8) + b"tar\0") + END)) == [b"some/dir/f"]
    assert names(read(header(b"f", prefix=b"00000000000", magic=b"ustar  \0") + END)) == [b"f"]  # GNU keeps times there


def test_signed_checksums_are_taken() -> None:
    """Some old tars summed signed bytes."""
    block = header(b"\xe9")
    unsigned = int(block[148:154], 8)
    assert names(read(header(b"\xe9", checksum=b"%06o\0 " % (unsigned - 256)) + END)) == [b"\xe9"]


@pytest.mark.parametrize("tail", [b"", bytes(512), bytes(1024), bytes(10240), END + b"rubbish behind the end"])
def test_a_tar_may_end_in_several_ways(tail: bytes) -> None:
    """With two empty blocks, one, or none; data after two is ignored."""
    assert names(read(file(b"a", b"x") + tail)) == [b"a"]


def test_missing_padding_at_the_end_is_no_loss() -> None:
    """The last file's bytes are all there."""
    data = header(b"a", size=3) + b"abc"
    (member,) = read(data)
    assert content(member, data) == b"abc"


def test_an_empty_tar_is_an_empty_layer() -> None:
    """Zero bytes, or the end alone."""
    assert read(b"") == read(END) == []


def test_every_truncation_is_noticed() -> None:
    """A tar cut anywhere but between entries is refused, never read as a shorter one."""
    data = pax((b"path", b"name")) + file(b"a", b"x" * 700) + file(b"b", b"y") + END
    whole = len(data) - len(END)
    first = len(pax((b"path", b"name")) + file(b"a", b"x" * 700))
    for length in range(1, whole):
        if first - 324 <= length <= first or whole - 511 <= length:
            continue  # between entries, or in padding
        with pytest.raises(InvalidTar):
            read(data[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html><body>404</body></html>".ljust(1024), "is not a header.*The layer is not a tar"),
        (b"\0asm\1\0\0\0" + bytes(range(256)) * 4, "is not a header.*The layer is not a tar"),
        (b"short", "ends inside a block"),
        (file(b"a", b"x") + b"\1" * 512 + END, "at 1024 of its tar is not a header.*damaged"),
        (bytes(512) + file(b"a", b"x"), "goes on behind an empty block at 0"),
        (header(b"a", b"Z") + END, "'a' is of the unknown tar type b'Z'"),
        (header(b"a", b"M", 5) + END, "unknown tar type b'M'"),
        (header(b"a", b"D", 5) + END, "unknown tar type b'D'"),
        (pax((b"path", b"a\0b")) + header() + END, "holds a NUL"),
        (pax((b"path", b"n" * 256)) + header() + END, "more than 255 bytes"),
        (header(b"l", b"1", 0, b"a") + header(b"a") + END, "'l' is a hard link to 'a', which is not an earlier file"),
        (header(b"a", b"5") + header(b"l", b"1", 0, b"a") + END, "not an earlier file"),
        (header(b"a") + header(b"a", b"1", 0, b"a") + END, "not an earlier file"),
        (header(b"a") + header(b"a", b"5") + header(b"l", b"1", 0, b"a") + END, "not an earlier file"),
        (header(b"l", b"2") + END, "symbolic link to what is not a path"),
        (pax((b"linkpath", b"x" * 4096)) + header(b"l", b"2") + END, "not a path"),
        (pax((b"linkpath", b"x\0y")) + header(b"l", b"2") + END, "not a path"),
        (pax((b"gid", b"-")) + header() + END, "not a number"),
        (header(b"a", size_field=b"\xff" * 12) + END, "has -1 bytes"),
        (header(b"a", size_field=b"\x80" + b"\xff" * 11) + END, "the tar ends"),
        (header(b"a", size=5000) + END, "has 5000 bytes, and the tar ends 1024 behind"),
        (pax((b"size", b"99999")) + header() + END, "has 99999 bytes"),
        (pax((b"size", b"-1")) + header() + END, "not a number"),
        (header(b"", b"0") + END, "the root is a reg"),
        (header(b"./", b"2", link=b"x") + END, "the root is a symlink"),
        (header(b"x", b"x", 1 << 21) + END, "an extended header has 2097152 bytes"),
        (header(b"x", b"L", 600) + b"n" * 100, "ends inside an extended header"),
        (pax((b"path", b"x")), "ends after an extended header"),
        (pax((b"path", b"x")) + END, "ends after an extended header"),
        (header(b"c", b"3", major=b"\xff" * 8) + END, "is a device of the number -1"),
        (pax((b"SCHILY.xattr.", b"x")) + header() + END, "extended attribute"),
        (pax((b"SCHILY.xattr." + b"k" * 256, b"x")) + header() + END, "extended attribute"),
        (pax((b"SCHILY.xattr.user.a", b"x" * 65537)) + header() + END, "extended attribute"),
        (header(b".wh.") + END, "whiteout of nothing"),
        (header(b"a/.wh...") + END, "whiteout of nothing"),
    ],
)
def test_what_is_refused_says_why(data: bytes, message: str) -> None:
    """Each with the layer's name, what it concerns, and what is wrong with it."""
    with pytest.raises(InvalidTar, match=f"(?s)^layer 1.*{message}"):
        read(data)


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is two million; fewer do for a test."""
    monkeypatch.setattr("lazyfs.format.tar.MAX_ENTRIES", 3)
    assert len(read(header() * 3 + END)) == 3
    with pytest.raises(InvalidTar, match="more than 3 entries"):
        read(header() * 4 + END)


@pytest.mark.parametrize(
    ("number", "owner"),
    [(2**32 - 2, 2**32 - 2), (2**32 - 1, KEPT_OWNER), (2**32, 0), (2**32 + 5, 5), (-1, KEPT_OWNER), (-5, 2**32 - 5)],
)
def test_owners_are_whom_chown_takes_them_for(number: int, owner: int) -> None:
    """32 bits of the number; all ones leave the owner as it is (tests/layer_stacks.py has what that comes to)."""
    field = number.to_bytes(8, "big", signed=True) if number < 0 else b"\x80" + number.to_bytes(7, "big")
    text = str(number).encode()
    for data in (header(b"a", uid=field), pax((b"uid", text)) + header(b"a"), pax((b"gid", text)) + header(b"a")):
        (member,) = read(data + END)
        assert owner in {member.entry.uid, member.entry.gid} and {0, owner} == {0, member.entry.uid, member.entry.gid}


def test_names_that_climb_end_at_the_root() -> None:
    """As after containerd and umoci, hard links and whiteouts as well."""
    data = header(b"../a") + header(b"x/../l", b"1", 0, b"../../a") + header(b"d/../.wh.b") + header(b"d/..", b"5") + END
    assert [(member.entry.name, member.entry.link) for member in read(data)] == [
        (b"a", b""), (b"l", b"a"), (b".wh.b", b""), (b"", b"")
    ]  # fmt: skip


@given(st.lists(st.sampled_from([b"", b".", b"a", b"bc", b"..", b".wh.x", b"\xff"]), max_size=8), st.booleans())
def test_clean_names_are_what_posix_paths_mean(parts: list[bytes], absolute: bool) -> None:
    """As os.path.normpath has it, relative."""
    raw = b"/" * absolute + b"/".join(parts)
    expected = os.path.normpath(b"/" + raw).lstrip(b"/")
    assert clean_name(raw, "t") == expected
    assert clean_name(expected, "t") == expected


@given(st.binary(max_size=3000))
def test_rubbish_is_refused_in_our_own_words(data: bytes) -> None:
    """Whatever the bytes, InvalidTar or a list; nothing else escapes."""
    said = complaint(data)
    assert not said or said.startswith("layer 1")


@given(st.data())
def test_a_flipped_byte_is_refused_in_our_own_words(data: st.DataObject) -> None:
    """A good tar with bytes changed, its checksums made right again."""
    tar = bytearray(pax((b"path", b"x/y"), (b"mtime", b"1.5")) + file(b"a", b"x" * 600) + header(b"l", b"1", 0, b"x/y") + END)
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    for offset in (0, 1024, 2560):
        block = tar[offset : offset + 512]
        tar[offset + 148 : offset + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    said = complaint(bytes(tar))
    assert not said or said.startswith("layer 1")
