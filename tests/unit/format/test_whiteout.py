"""Names that begin with `.wh.`, in a tar and in a TOC: what is left out, and what hard links to that become."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidTar, InvalidToc
from lazyfs.format.entry import Entry
from lazyfs.format.tar import TarMember, read_tar
from lazyfs.format.tar_header import header_bytes
from lazyfs.format.toc import parse_toc
from lazyfs.format.toc_json import encode_toc
from lazyfs.format.whiteout import LeftOut, is_whiteout_device, name_kind
from tests.tars import END, content, file, header, info, read, written


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (b"", "shown"),
        (b"a/b.wh.c/.whx", "shown"),
        (b".wh.a", "whiteout"),
        (b"d/.wh.a", "whiteout"),
        (b".wh..wh..opq", "whiteout"),
        (b"d/.wh..wh..opq", "whiteout"),
        (b"d/.wh..wh.aufs", "whiteout"),
        (b".wh..wh.aufs", "aufs"),
        (b".wh..wh.", "aufs"),
        (b".wh..wh.plnk/1.2", "aufs"),
        (b".wh..wh.orph/d/.wh.x", "aufs"),
        (b".wh..wh..opqx", "aufs"),
        (b".wh..wh..opq/x", "below"),
        (b".wh.d/x", "below"),
        (b"d/.wh.e/f/g", "below"),
        (b"d/.wh..wh.plnk/1.2", "below"),
        (b"d/.wh.e/.wh.f", "below"),
    ],
)
def test_each_name_has_its_place(name: bytes, place: str) -> None:
    """AUFS' metadata is in the root alone; the opaque marker is none of it."""
    assert name_kind(name) == place


AUFS = written(
    info(".wh..wh.aufs"),
    info(".wh..wh.orph", tarfile.DIRTYPE),
    info(".wh..wh.plnk", tarfile.DIRTYPE),
    (info(".wh..wh.plnk/12.34", mode=0o4711, uid=7, mtime=5), b"linked"),
    info(".wh..wh.plnk/.wh.x"),
    info("d", tarfile.DIRTYPE),
    info("d/one", tarfile.LNKTYPE, linkname=".wh..wh.plnk/12.34", mode=0o600),
    info("d/two", tarfile.LNKTYPE, linkname="/.wh..wh.plnk/12.34"),
    info("d/.wh.gone", tarfile.LNKTYPE, linkname=".wh..wh.aufs"),
    info("three", tarfile.LNKTYPE, linkname="d/one"),
)
SHOWN = [
    (b"d", "dir", b""),
    (b"d/one", "reg", b"linked"),
    (b"d/two", "hardlink", b"d/one"),
    (b"d/.wh.gone", "reg", b""),
    (b"three", "hardlink", b"d/one"),
]


def members(tar: bytes, left_out: LeftOut | None = None, blob_size: int = 1 << 20) -> list[TarMember]:
    return list(read_tar(lambda offset, size: tar[offset : offset + size], len(tar), blob_size, "layer 1", left_out))


def test_a_tar_of_aufs() -> None:
    """Its metadata goes without a note; the first hard link to a pseudo-link is that file, and the second links to the first."""
    left_out = LeftOut()
    found = members(AUFS, left_out)
    assert [(member.entry.name, member.entry.type, content(member, AUFS) or member.entry.link) for member in found] == SHOWN
    assert (found[1].entry.mode, found[1].entry.uid, found[1].entry.mtime_ns) == (0o4711, 7, 5 * 10**9)
    assert (left_out.aufs, left_out.below, left_out.note) == (5, 0, "")


def test_a_toc_of_aufs() -> None:
    """The same of the TOC that another converter made of such a tar."""
    digest = "sha256:" + "ab" * 32
    plnk = {"name": ".wh..wh.plnk/12.34", "type": "reg", "size": 6, "offset": 1, "mode": 0o4711, "uid": 7, "chunkDigest": digest}
    entries = [
        {"name": ".wh..wh.aufs", "type": "reg"},
        {"name": ".wh..wh.plnk", "type": "dir"},
        plnk,
        {"name": ".wh..wh.plnk/again", "type": "hardlink", "linkName": ".wh..wh.plnk/12.34"},
        {"name": "d/one", "type": "hardlink", "linkName": ".wh..wh.plnk/12.34"},
        {"name": "d/two", "type": "hardlink", "linkName": ".wh..wh.plnk/12.34"},
        {"name": "d/four", "type": "hardlink", "linkName": ".wh..wh.plnk/again"},
        {"name": "d/.wh.gone", "type": "hardlink", "linkName": ".wh..wh.aufs"},
        {"name": "three", "type": "hardlink", "linkName": "d/one"},
        {"name": ".wh..wh.plnk/of-shown", "type": "hardlink", "linkName": "three"},
        {"name": "five", "type": "hardlink", "linkName": ".wh..wh.plnk/of-shown"},
    ]
    left_out = LeftOut()
    found = parse_toc(json.dumps({"version": 1, "entries": entries}).encode(), 100, "layer 1", left_out)
    assert [(member.name, member.type, member.size or member.link) for member in found] == [
        (b"d/one", "reg", 6),
        (b"d/two", "hardlink", b"d/one"),
        (b"d/four", "reg", 6),
        (b"d/.wh.gone", "reg", b""),
        (b"three", "hardlink", b"d/one"),
        (b"five", "hardlink", b"d/one"),
    ]
    assert {(member.mode, member.uid, member.chunks[0].digest) for member in found[0:3:2]} == {
        (0o4711, 7, bytes.fromhex("ab" * 32))
    }
    assert (left_out.aufs, left_out.note) == (5, "")


def test_what_lies_below_a_whiteout_is_left_out_and_counted() -> None:
    """A full pull shows it in a directory that is named like a whiteout. The whiteout itself counts, whatever its type."""
    tar = written(info(".wh.d", tarfile.DIRTYPE), (info(".wh.d/x"), b"1"), (info("e/.wh.f/g"), b"2"), (info("h"), b"3"))
    left_out = LeftOut()
    assert [member.entry.name for member in members(tar, left_out)] == [b".wh.d", b"h"]
    assert left_out.below == 2 and "2 entries" in left_out.note and "'.wh.d/x'" in left_out.note
    of_toc = LeftOut()
    toc = encode_toc([Entry(b".wh.d", "dir"), Entry(b".wh.d/x", "reg"), Entry(b"e/.wh.f/g", "reg"), Entry(b"h", "reg")], None)
    assert [entry.name for entry in parse_toc(toc, 0, "layer 1", of_toc)] == [b".wh.d", b"h"]
    assert of_toc.note == left_out.note


@pytest.mark.parametrize("link", ["", ".wh..wh.plnk/none", ".wh.b", "d"])
def test_a_hard_link_to_nothing_is_refused(link: str) -> None:
    """No pseudo-link of that name, a whiteout, a directory: as in containerd."""
    tar = (
        file(b".wh..wh.plnk/other", b"x") + file(b".wh.b", b"") + header(b"d/", b"5") + header(b"a", b"1", 0, link.encode()) + END
    )
    with pytest.raises(InvalidTar, match=r"'a' is a hard link to .*not an earlier file"):
        read(tar)


def test_a_toc_that_links_to_nothing_is_refused() -> None:
    """The same message as for a name that is shown."""
    entries = [{"name": "a", "type": "hardlink", "linkName": ".wh..wh.plnk/none"}]
    with pytest.raises(InvalidToc, match="not an earlier file"):
        parse_toc(json.dumps({"version": 1, "entries": entries}).encode(), 0, "layer 1")


def test_a_pseudo_link_whose_first_name_is_replaced() -> None:
    """The next link is the file again, and none leads to what took the name."""
    links = [header(name, b"1", 0, b".wh..wh.plnk/f") for name in (b"a", b"b", b"c")]
    tar = file(b".wh..wh.plnk/f", b"old") + links[0] + file(b"a", b"new") + links[1] + links[2] + END
    found = [(member.entry.name, member.entry.type, content(member, tar) or member.entry.link) for member in members(tar)]
    assert found == [(b"a", "reg", b"old"), (b"a", "reg", b"new"), (b"b", "reg", b"old"), (b"c", "hardlink", b"b")]


def test_which_devices_are_whiteouts() -> None:
    """As far as mknod(2) keeps their numbers; no block device is."""
    assert is_whiteout_device("char", 0, 0) and is_whiteout_device("char", 1 << 12, 1 << 20)
    assert not is_whiteout_device("char", 0, 1) and not is_whiteout_device("char", 1, 0) and not is_whiteout_device("block", 0, 0)


PATHS = (
    b"a", b"b", b"a/c", b".wh.a", b"a/.wh.c", b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.plnk/1", b".wh..wh.plnk/2", b".wh.d/x", b"a/.wh.e/x",
    b".wh..wh..opq",
)  # fmt: skip


@given(st.lists(st.sampled_from(PATHS), min_size=1, max_size=9, unique=True), st.data())
def test_a_tar_and_its_toc_show_the_same(names: list[bytes], data: st.DataObject) -> None:
    """Whatever is hidden and linked: the same names, each the same inode, where the tar is one that anybody unpacks."""
    entries: list[Entry] = []
    for number, name in enumerate(names):
        kind = data.draw(st.sampled_from(["reg", "dir", "symlink", "hardlink", "hardlink"])) if entries else "reg"
        link = (
            data.draw(st.sampled_from([entry.name for entry in entries]))
            if kind == "hardlink"
            else b"x"
            if kind == "symlink"
            else b""
        )
        entries.append(Entry(name, kind, number, link=link))
    try:
        of_tar = [member.entry for member in members(b"".join(map(header_bytes, entries)) + END)]
    except InvalidTar:
        return
    if all(entry.type == "dir" for entry in of_tar if entry.name == b"a"):  # else its own names contradict each other
        assert shown_inodes(parse_toc(encode_toc(entries, None), 0, "layer 1")) == shown_inodes(of_tar)


def shown_inodes(entries: Iterable[Entry]) -> dict[bytes, int]:
    """Name -> what identifies its inode: the mode, which differs between all entries."""
    found: dict[bytes, int] = {}
    for entry in entries:
        found[entry.name] = found[entry.link] if entry.type == "hardlink" else entry.mode
    return found
