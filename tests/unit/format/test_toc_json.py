"""Written TOCs: read back by our reader, and shaped as peers need them."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format.entry import WHITEOUT_PREFIX, Chunk, Entry, parent_of
from lazyfs.format.toc import parse_toc
from lazyfs.format.toc_json import encode_toc

RAW = hashlib.sha256(b"x").digest()
COMPONENT = st.one_of(
    st.sampled_from([b"a", b"\xe9", b"\\xe9", b"\\xe9~", b"\xe9\xff", "é".encode(), b"a\nb", b'"', b"\xed\xa0\x80"]),
    st.binary(min_size=1, max_size=12).filter(lambda part: not set(part) & set(b"/\0") and part not in {b".", b".."}),
    st.just(b"\xff" * 255),
).filter(lambda part: not part.startswith(WHITEOUT_PREFIX))
"""Of a whiteout the reader keeps nothing but its name (format/whiteout.py)."""
TIMES = st.one_of(
    st.integers(-(2**66), 2**66), st.sampled_from([0, 1, -1, -62135596800 * 10**9 - 1, 253402300800 * 10**9, 10**9])
)


def rows(*entries: Entry, digests: dict[bytes, bytes] | None = None) -> list[dict[str, Any]]:
    """The JSON entries."""
    found = json.loads(encode_toc(entries, digests or {}))
    assert found["version"] == 1
    return list(found["entries"])


@st.composite
def layers(draw: st.DrawFn) -> list[Entry]:
    """Entries as the converter has them: unique names, parents as directories, chunks in ascending members."""
    found: dict[bytes, Entry] = {}
    offset = 10
    for path in draw(st.lists(st.lists(COMPONENT, min_size=1, max_size=3), max_size=8)):
        name = b"/".join(path)
        if name in found or any(other.startswith(name + b"/") for other in found):
            continue
        parents = [b"/".join(path[:depth]) for depth in range(1, len(path))]
        if any(parent in found and found[parent].type != "dir" for parent in parents):
            continue
        for parent in parents:
            found.setdefault(parent, Entry(parent, "dir"))
        files = [entry.name for entry in found.values() if entry.type == "reg"]
        kind = draw(st.sampled_from(["dir", "reg", "symlink", "hardlink", "char"] if files else ["dir", "reg", "symlink"]))
        chunks: list[Chunk] = []
        size = 0
        if kind == "reg":
            for length in draw(st.lists(st.integers(1, 9), max_size=3)):
                chunks.append(Chunk(size, length, hashlib.sha256(bytes([offset % 256])).digest(), offset, 0, offset + 10))
                size, offset = size + length, offset + 10
        found[name] = Entry(
            name,
            kind,
            draw(st.integers(0, 0o7777)),
            draw(st.integers(0, 2**32 - 2)),
            draw(st.integers(0, 2**32 - 2)),
            draw(TIMES),
            size,
            draw(COMPONENT) if kind == "symlink" else draw(st.sampled_from(files)) if kind == "hardlink" else b"",
            5 if kind == "char" else 0,
            7 if kind == "char" else 0,
            tuple(sorted(draw(st.dictionaries(COMPONENT, st.binary(max_size=20), max_size=3)).items())),
            tuple(chunks),
        )
    ordered = list(found.values())
    last = max((number for number, entry in enumerate(ordered) if entry.chunks), default=None)
    if last is not None:  # the last member ends where the TOC begins
        assert ordered[last].chunks[-1].member_end == offset
    return ordered


@given(layers())
def test_our_reader_reads_what_we_write(entries: list[Entry]) -> None:
    """Every field of every entry, bytes that are not UTF-8 and times that RFC 3339 cannot spell included."""
    end = max((chunk.member_end for entry in entries for chunk in entry.chunks), default=10)
    data = encode_toc(entries, {entry.name: RAW for entry in entries if len(entry.chunks) > 1})
    assert parse_toc(data, end, "layer 1") == tuple(entries)


@given(layers())
def test_peers_see_names_of_their_own(entries: list[Entry]) -> None:
    """Stand-ins are unique, UTF-8, at most 255 bytes a component, and lie in their parents' stand-ins."""
    found = rows(*entries, digests={entry.name: RAW for entry in entries})
    shown = {}
    for row, entry in zip([row for row in found if row["type"] != "chunk"], entries, strict=True):
        shown[entry.name] = row["name"].rstrip("/") if entry.type == "dir" else row["name"]
    assert len(set(shown.values())) == len(entries)
    for name, text in shown.items():
        assert all(len(part.encode()) <= 255 for part in text.split("/"))
        parent = parent_of(name)
        assert text.rpartition("/")[0] == (shown[parent] if parent else "")
        if name.isascii():
            assert text == name.decode()
    for row, entry in zip([row for row in found if row["type"] != "chunk"], entries, strict=True):
        if entry.type == "hardlink":
            assert row["linkName"] == shown[entry.link]


def test_the_shape_that_peers_read() -> None:
    """Chunks with their sizes and digests, the last size left out, a digest of the whole file, nothing where nothing is."""
    chunks = (Chunk(0, 4, RAW, 100, 0, 200), Chunk(4, 4, RAW, 200, 0, 300), Chunk(8, 2, RAW, 300, 0, 400))
    whole = hashlib.sha256(b"whole").digest()
    spelled = "sha256:" + RAW.hex()
    found = rows(
        Entry(b"", "dir"),
        Entry(b"d", "dir", 0, 1, 2, 10**9),
        Entry(b"d/big", "reg", 0o644, size=10, chunks=chunks),
        Entry(b"d/one", "reg", 0o644, size=3, chunks=(Chunk(0, 3, RAW, 400, 0, 500),)),
        Entry(b"d/empty", "reg", 0o644),
        digests={b"d/big": whole},
    )
    epoch = "1970-01-01T00:00:00Z"
    assert found == [
        {"name": "./", "type": "dir", "modtime": epoch, "mode": 0o755},
        {"name": "d/", "type": "dir", "modtime": "1970-01-01T00:00:01Z", "uid": 1, "gid": 2},
        {
            "name": "d/big",
            "type": "reg",
            "size": 10,
            "modtime": epoch,
            "mode": 0o644,
            "offset": 100,
            "digest": "sha256:" + whole.hex(),
            "chunkSize": 4,
            "chunkDigest": spelled,
        },
        {"name": "d/big", "type": "chunk", "offset": 200, "chunkOffset": 4, "chunkSize": 4, "chunkDigest": spelled},
        {"name": "d/big", "type": "chunk", "offset": 300, "chunkOffset": 8, "chunkDigest": spelled},
        {
            "name": "d/one",
            "type": "reg",
            "size": 3,
            "modtime": epoch,
            "mode": 0o644,
            "offset": 400,
            "digest": spelled,
            "chunkDigest": spelled,
        },
        {
            "name": "d/empty",
            "type": "reg",
            "modtime": epoch,
            "mode": 0o644,
            "digest": "sha256:" + hashlib.sha256().hexdigest(),
        },
    ]


def test_readers_that_stream_or_hash_find_what_they_need() -> None:
    """No array before the entries, and nothing behind the closing brace."""
    data = encode_toc([Entry(b"a", "dir")], {})
    assert data.startswith(b'{"version":1,"entries":[{"name":"a/"')
    assert data.endswith(b"}]}")


@pytest.mark.parametrize(
    ("mtime_ns", "modtime", "own"),
    [
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z", None),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z", None),
        (-5_250_000_000, "1969-12-31T23:59:54.75Z", None),
        (-62135596800 * 10**9, "0001-01-01T00:00:00Z", None),
        (-62135596801 * 10**9, "0001-01-01T00:00:00Z", "-62135596801000000000"),
        (253402300800 * 10**9 + 5, "9999-12-31T23:59:59Z", "253402300800000000005"),
    ],
)
def test_times(mtime_ns: int, modtime: str, own: str | None) -> None:
    """RFC 3339 with the nanoseconds that there are; a key of our own where its years end."""
    (row,) = rows(Entry(b"a", "dir", mtime_ns=mtime_ns))
    assert (row["modtime"], row.get("lazyfsMtime")) == (modtime, own)


def test_raw_bytes_have_keys_of_their_own() -> None:
    """Two names that peers would fold into one stay two, and the bytes themselves are there for us."""
    found = rows(
        Entry(b"x-\xe9", "reg"),
        Entry(b"x-\xea", "reg"),
        Entry(b"x-\\xe9", "reg"),
        Entry(b"l", "symlink", link=b"to-\xe9", xattrs=((b"user.\xff", b"v"),)),
    )
    assert [row["name"] for row in found] == ["x-\\xe9~", "x-\\xea", "x-\\xe9", "l"]
    assert base64.b64decode(found[0]["lazyfsName"]) == b"x-\xe9"
    assert "lazyfsName" not in found[2]
    assert (found[3]["linkName"], base64.b64decode(found[3]["lazyfsLinkName"])) == ("to-\\xe9", b"to-\xe9")
    assert found[3]["xattrs"] == {"user.\\xff": "dg=="}
    assert base64.b64decode(found[3]["lazyfsXattrKeys"]["user.\\xff"]) == b"user.\xff"


def test_tocs_do_not_change() -> None:
    """A golden digest: other bytes here are other TOC digests for every layer ever converted."""
    chunks = (Chunk(0, 4, RAW, 100, 0, 200), Chunk(4, 1, RAW, 200, 0, 300))
    entry = Entry(b"a\xe9", "reg", 0o4755, 2**32 - 2, 5, -1_500_000_000, 5, xattrs=((b"user.a", b"\0"),), chunks=chunks)
    device = Entry(b"dev", "char", 0o600, major=7, minor=8)
    data = encode_toc([entry, device, msgspec.structs.replace(device, name=b"d", type="dir")], {entry.name: RAW})
    assert hashlib.sha256(data).hexdigest() == "e1245649e27831b24ad278904727bda4dcc4043d4002e576e07eff7e5593af20"
