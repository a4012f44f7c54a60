"""Reading a TOC: what well-formed ones mean. tests/bad/ has the errors for broken ones."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidToc
from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.toc import parse_toc

DIGEST = "sha256:" + hashlib.sha256(b"x").hexdigest()
RAW = bytes.fromhex(DIGEST[7:])


def parse(*entries: dict[str, Any], toc_offset: int = 10_000) -> tuple[Entry, ...]:
    """A TOC of these entries, read."""
    return parse_toc(json.dumps({"version": 1, "entries": entries}).encode(), toc_offset, "layer 1")


def test_chunks_of_a_file_and_where_their_members_end() -> None:
    """Sizes that are left out follow from the file's, and a member ends where the next data begins."""
    (first, second) = parse(
        {"name": "a", "type": "reg", "size": 25, "offset": 100, "chunkSize": 10, "chunkDigest": DIGEST},
        {"name": "a", "type": "chunk", "offset": 300, "chunkOffset": 10, "chunkSize": 10, "chunkDigest": DIGEST},
        {"name": "a", "type": "chunk", "offset": 500, "chunkOffset": 20, "chunkDigest": DIGEST},
        {"name": "b", "type": "reg", "size": 3, "offset": 700, "digest": DIGEST},
    )
    assert first.chunks == (Chunk(0, 10, RAW, 100, 0, 300), Chunk(10, 10, RAW, 300, 0, 500), Chunk(20, 5, RAW, 500, 0, 700))
    assert second.chunks == (Chunk(0, 3, RAW, 700, 0, 10_000),)


def test_null_means_that_a_field_is_absent() -> None:
    """In whichever field, and beside an attribute whose value is null: that one is empty."""
    absent: dict[str, Any] = dict.fromkeys(["linkName", "uid", "gid", "devMajor", "devMinor", "innerOffset", "digest", "modtime"])
    (directory, file) = parse(
        {"name": "d", "type": "dir", "xattrs": {"user.a": None}, "size": None, "chunkSize": None, **absent},
        {
            "name": "a",
            "type": "reg",
            "size": 3,
            "offset": 700,
            "chunkDigest": DIGEST,
            "xattrs": None,
            "chunkOffset": None,
            **absent,
        },
    )
    assert directory == Entry(b"d", "dir", 0, xattrs=((b"user.a", b""),))
    assert file.chunks == (Chunk(0, 3, RAW, 700, 0, 10_000),)
    with pytest.raises(InvalidToc, match="name"):
        parse({"name": None, "type": "dir"})


def test_the_case_of_a_fields_name_does_not_matter() -> None:
    """As for Go, which the other readers are written in: whichever field it is, it is that field, not one that is skipped."""
    entry = {
        "Name": "a",
        "TYPE": "reg",
        "Size": 3,
        "oFFset": 700,
        "ChunkDigest": DIGEST,
        "XAttrs": {"user.Name": "eA=="},
        "UID": 7,
    }
    (found,) = parse_toc(json.dumps({"Version": 1, "ENTRIES": [entry]}).encode(), 10_000, "layer 1")
    assert found == Entry(
        b"a", "reg", 0, uid=7, size=3, xattrs=((b"user.Name", b"x"),), chunks=(Chunk(0, 3, RAW, 700, 0, 10_000),)
    )
    assert parse({"name": "d", "type": "dir", "uid": 1, "Uid": 2})[0].uid == 2
    assert parse({"name": "d", "type": "dir", "uid": 1, "Uid": None, "unknown": [{"uid": 3}], "userName": "x"})[0].uid == 1


def test_shared_members_are_reported_apart_by_their_inner_offset() -> None:
    """Two files in one member have one end."""
    (first, second) = parse(
        {"name": "a", "type": "reg", "size": 5, "offset": 100, "chunkDigest": DIGEST},
        {"name": "b", "type": "reg", "size": 5, "offset": 100, "innerOffset": 1024, "chunkDigest": DIGEST},
    )
    assert first.chunks[0].member == second.chunks[0].member == 100
    assert (first.chunks[0].inner, second.chunks[0].inner) == (0, 1024)


def test_a_member_that_claims_gigabytes_is_not_read_whole() -> None:
    """Compressed bytes beyond what a chunk could ever need are not asked for."""
    (entry,) = parse({"name": "a", "type": "reg", "size": 5, "offset": 1, "chunkDigest": DIGEST}, toc_offset=1 << 40)
    assert entry.chunks[0].member_end < 3 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29T12:00:00Z", 1_709_208_000 * 10**9),
        ("1969-12-31T23:59:59.25Z", -750_000_000),
        ("2242-03-16T12:56:32.123456789Z", 8_589_934_592 * 10**9 + 123_456_789),
        ("1970-01-01T02:00:00+02:00", 0),
        ("0001-01-01T00:00:00Z", -62_135_596_800 * 10**9),
        ("", 0),
    ],
)
def test_times(text: str, expected: int) -> None:
    """RFC 3339 with fractions and zones, before 1970 and after 2106."""
    assert parse({"name": "a", "type": "dir", "modtime": text})[0].mtime_ns == expected


@pytest.mark.parametrize(
    "text", ["yesterday", "2024-02-30T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00", "２024-01-01T00:00:00Z"]
)
def test_broken_times_are_named(text: str) -> None:
    """What is not an RFC 3339 time is an error with the entry's name."""
    with pytest.raises(InvalidToc, match="'a' has the modtime"):
        parse({"name": "a", "type": "dir", "modtime": text})


def test_own_keys_restore_raw_bytes() -> None:
    """Names, links and xattr keys that are not UTF-8 are shown as they were."""
    raw = base64.b64encode(b"x-\xe9").decode()
    (entry,) = parse(
        {
            "name": "x-%E9",
            "lazyfsName": raw,
            "type": "symlink",
            "linkName": "stand-in",
            "lazyfsLinkName": base64.b64encode(b"to\xff").decode(),
            "xattrs": {"user.stand-in": base64.b64encode(b"v\0v").decode(), "user.plain": None},
            "lazyfsXattrKeys": {"user.stand-in": base64.b64encode(b"user.\xee").decode()},
        }
    )
    assert (entry.name, entry.link) == (b"x-\xe9", b"to\xff")
    assert entry.xattrs == ((b"user.plain", b""), (b"user.\xee", b"v\0v"))


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "shown-to-peers", "lazyfsName": base64.b64encode(b"shown-to-us").decode(), "type": "dir"},
        {"name": "a", "type": "symlink", "linkName": "b", "lazyfsLinkName": base64.b64encode(b"c").decode()},
        {
            "name": "a",
            "type": "dir",
            "xattrs": {"user.a": ""},
            "lazyfsXattrKeys": {"user.a": base64.b64encode(b"user.b").decode()},
        },
    ],
)
def test_stand_ins_for_what_needs_none_are_refused(keys: dict[str, Any]) -> None:
    """An image must not show one name to us and another to everybody else."""
    with pytest.raises(InvalidToc, match="needs no stand-in"):
        parse(keys)


def test_inner_offsets_are_bounded_with_their_chunk() -> None:
    """What lies before a chunk in its member has to be inflated, and held, as well."""
    with pytest.raises(InvalidToc, match="innerOffset"):
        parse({"name": "a", "type": "reg", "size": 5, "offset": 1, "innerOffset": (64 << 20) - 4, "chunkDigest": DIGEST})


def test_type_bits_in_the_mode_are_masked() -> None:
    """The specification's own example carries them."""
    assert parse({"name": "a/", "type": "dir", "mode": 16877})[0].mode == 0o755


def test_names_come_out_clean_and_the_last_of_a_name_wins() -> None:
    """`./`, trailing and doubled slashes go; a later entry replaces an earlier one."""
    entries = parse(
        {"name": "./d//e/", "type": "dir", "uid": 1},
        {"name": "d/e", "type": "dir", "uid": 2},
        {"name": "./", "type": "dir", "uid": 3},
    )
    assert [(entry.name, entry.uid) for entry in entries] == [(b"d/e", 2), (b"", 3)]


def test_hard_links_lead_to_the_file_itself() -> None:
    """A link to a link is resolved, so that no later entry can close a circle."""
    entries = parse(
        {"name": "a", "type": "reg"},
        {"name": "b", "type": "hardlink", "linkName": "a"},
        {"name": "c", "type": "hardlink", "linkName": "b"},
    )
    assert entries[2].link == b"a"
    with pytest.raises(InvalidToc, match="hard link"):
        parse(
            {"name": "a", "type": "reg"},
            {"name": "b", "type": "hardlink", "linkName": "a"},
            {"name": "a", "type": "hardlink", "linkName": "b"},
        )


@pytest.mark.parametrize("field", ["uid", "gid"])
@pytest.mark.parametrize(("number", "owner"), [(2**32 - 2, 2**32 - 2), (2**32 - 1, 0), (2**32, 0), (-1, 0)])
def test_ids_are_those_that_chown_takes(field: str, number: int, owner: int) -> None:
    """As in tars: 2^32-1 is "leave it as it is" to chown(2), so the owner is root, and never that number."""
    assert getattr(parse({"name": "a", "type": "reg", field: number})[0], field) == owner


@pytest.mark.parametrize("name", ["..", "../a", "a/..", "a/../b", "./..", "a/b/../../../c"])
def test_names_do_not_climb(name: str) -> None:
    """Neither a name nor what a hard link names; a symbolic link may say what it likes."""
    for entry in ({"name": name, "type": "reg"}, {"name": "l", "type": "hardlink", "linkName": name}):
        with pytest.raises(InvalidToc, match=r"climbs out with '\.\.'"):
            parse({"name": "a/b", "type": "reg"}, entry)
    assert parse({"name": "l", "type": "symlink", "linkName": name})[0].link == name.encode()


_KEYS = st.sampled_from(
    [
        "name",
        "type",
        "size",
        "offset",
        "chunkOffset",
        "chunkSize",
        "chunkDigest",
        "digest",
        "linkName",
        "innerOffset",
        "uid",
        "mode",
        "xattrs",
    ]
)
_VALUES = st.sampled_from(
    [
        "reg",
        "dir",
        "chunk",
        "hardlink",
        "symlink",
        "a",
        "a/b",
        "../x",
        "/x",
        DIGEST,
        0,
        1,
        -1,
        5,
        2**63,
        2**64,
        None,
        True,
        0.5,
        "",
        [],
        {},
        {"user.a": "AA=="},
        {"user.a": "no base64"},
        "\0",
        "ü",
    ]
)


@given(st.lists(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=8), max_size=5))
def test_any_json_is_a_toc_or_a_clear_error(entries: list[dict[str, Any]]) -> None:
    """Nothing but InvalidToc comes out, and what is accepted is consistent."""
    try:
        parsed = parse(*entries)
    except InvalidToc:
        return
    for entry in parsed:
        assert sum(chunk.size for chunk in entry.chunks) == entry.size
        assert b".." not in entry.name.split(b"/") and not entry.name.startswith(b"/")


@pytest.mark.parametrize("field", ["name", "type", "modtime", "chunkDigest", "lazyfsMtime"])
def test_a_message_is_no_longer_than_a_screen(field: str) -> None:
    """Whatever a hostile TOC writes a megabyte of is quoted in part."""
    entry = {"name": "a", "type": "reg", "size": 1, field: "x" * (1 << 20)}
    with pytest.raises(InvalidToc) as caught:
        parse(entry)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("depth", [900, 9_990])
def test_unknown_fields_may_be_deep(depth: int) -> None:
    """As deep as Go reads them, in an entry and beside the entries; what stands around them counts."""
    deep = '{"a": ["}\\"]", ' * (depth // 2) + "1" + "]}" * (depth // 2)
    toc = f'{{"x": {deep}, "version": 1, "entries": [{{"name": "a", "y": {deep}, "type": "dir", "mode": 448}}]}}'
    (entry,) = parse_toc(toc.encode(), 10_000, "layer 1")
    assert entry == Entry(b"a", "dir", 0o700)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 10_001 + "]" * 10_001, "nested too deeply"),
        ("[" * 5000 + "]" * 4999, "JSON"),
        ("[" * 5000 + "]" * 9000, "has not begun"),
    ],
)
def test_what_is_deeper_or_does_not_match_is_refused(value: str, message: str) -> None:
    """As by Go."""
    with pytest.raises(InvalidToc, match=message):
        parse_toc(f'{{"version": 1, "entries": [], "x": {value}}}'.encode(), 10_000, "layer 1")


def test_deep_fields_of_the_format_are_refused() -> None:
    """They are not taken for absent."""
    toc = '{"version": 1, "entries": [{"name": "a", "type": "dir", "mode": ' + "[" * 5000 + "]" * 5000 + "}]}"
    with pytest.raises(InvalidToc, match="JSON that the format asks for"):
        parse_toc(toc.encode(), 10_000, "layer 1")
