"""Layers unpacked to disk: all compressions, all that can be wrong with them."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import tracemalloc
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import DigestMismatch, InvalidInput, LocalError, StoreFull
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import OCI_LAYER_GZIP, Descriptor
from lazyfs.layertar.spool import NeedsMore, Spool, unnamed_file, unpack
from tests.unit.converter.making import convert_tar

DATA = os.urandom(3000) + bytes(3_000_000) + b"end"


def spooled(
    blob: bytes, diff_id: Digest, digest: Digest | None = None, keep_blob: bool = False
) -> tuple[bytes, Mapping[int, int], int]:
    """The tar, the members and the bytes that were counted."""
    layer = Descriptor(OCI_LAYER_GZIP, digest or digest_of(blob), len(blob), {}, None, {})
    position = counted = 0

    def pull(count: int) -> bytes:
        nonlocal position
        position += count
        return blob[position - count : position]

    def count(size: int) -> None:
        nonlocal counted
        counted += size

    with Spool(keep_blob) as spool:
        unpack(spool, pull, layer, diff_id, count)
        if spool.blob is not None:
            assert os.pread(spool.blob.fileno(), len(blob) + 1, 0) == blob
        return spool.read_at(0, spool.size + 1), spool.members, counted


def frames(*parts: bytes) -> bytes:
    """Concatenated zstd frames, as zstd:chunked layers have them."""
    return b"".join(map(zstandard.ZstdCompressor().compress, parts))


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(DATA),
        gzip.compress(DATA[:5]) + gzip.compress(b"") + gzip.compress(DATA[5:]),
        frames(DATA),
        frames(DATA[:5], b"", DATA[5:]),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + frames(DATA),
        b"\x5f\x2a\x4d\x18\0\0\0\0" + frames(DATA),
        DATA,
    ],
    ids=["gzip", "members", "zstd", "frames", "skippable", "skippable, too", "tar"],
)
def test_the_first_bytes_decide_the_compression(blob: bytes) -> None:
    """The media type says gzip of all of them. The tar comes out, and every byte of the blob is counted and kept."""
    assert spooled(blob, digest_of(DATA)) == (DATA, {}, len(blob))
    assert spooled(blob, digest_of(DATA), keep_blob=True)[0] == DATA


@pytest.mark.parametrize("tar", [b"", b"x", b"xyz", b"\x1f\x8b", b"\x50\x2a\x4d"])
def test_a_layer_shorter_than_any_magic_number(tar: bytes) -> None:
    """It is a tar, and if it is none, its diff ID or its reader says so."""
    assert spooled(tar, digest_of(tar)) == (tar, {}, len(tar))


@given(st.lists(st.one_of(st.binary(max_size=50), st.just(bytes(100_000)), st.just(os.urandom(70_000))), min_size=1, max_size=8))
def test_members_are_found_where_they_begin(parts: list[bytes]) -> None:
    """Their blob offsets and tar offsets, wherever the reader's steps end."""
    blob, expected, tar = b"", {}, b""
    for part in parts:
        expected[len(blob)] = len(tar)
        blob += gzip.compress(part)
        tar += part
    assert spooled(blob, digest_of(tar), keep_blob=True)[:2] == (tar, expected)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 5, 9, 500])
def test_a_truncated_blob_is_refused(kind: str, cut: int) -> None:
    """Even where its digest is right: it was pushed so."""
    whole = gzip.compress(DATA) if kind == "gzip" else frames(DATA)
    with pytest.raises(InvalidInput, match=r"^layer sha256:"):
        spooled(whole[:-cut], digest_of(DATA))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"rubbish" * 100, "read as tar"),
        (gzip.compress(DATA) + b"rubbish", "broken gzip"),
        (gzip.compress(DATA)[:-8] + bytes(8), "broken gzip"),
        (frames(DATA) + b"rubbish", "broken zstd"),
        (b"\x28\xb5\x2f\xfd" + b"rubbish", "broken zstd"),
    ],
)
def test_what_does_not_unpack_is_refused(blob: bytes, message: str) -> None:
    """The message names the layer, and how it was read."""
    with pytest.raises(InvalidInput, match=rf"^layer {digest_of(blob)}.*{message}"):
        spooled(blob, digest_of(DATA))


@pytest.mark.parametrize("start", [b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"], ids=["tar", "gzip", "zstd"])
def test_a_wrong_digest_is_reported_first(start: bytes) -> None:
    """Bytes that are not the blob may be anything: what they unpack to matters little."""
    with pytest.raises(DigestMismatch, match="hashes to"):
        spooled(start + b"not what was asked", digest_of(DATA), digest=digest_of(b"what was asked"))


def test_a_wrong_diff_id_is_refused() -> None:
    """The config says what the layer unpacks to, and must be right."""
    with pytest.raises(DigestMismatch, match="the config's diff ID is"):
        spooled(gzip.compress(DATA), digest_of(b"else"))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_is_stopped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to more than a thousand times its size, and a bound, ends there."""
    monkeypatch.setattr("lazyfs.layertar.spool._MIN_LIMIT", 1 << 20)
    bomb = bytes(64 << 20)
    blob = frames(bomb) if kind == "zstd" else b"".join([gzip.compress(b"x")] * 3)
    if kind == "gzip":
        monkeypatch.setattr("lazyfs.layertar.spool._MAX_RATIO", 100)
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        blob = packer.compress(bomb) + packer.flush()
    with pytest.raises(InvalidInput, match="a decompression bomb"):
        spooled(blob, digest_of(bomb))


def test_an_estargz_layer_has_its_members() -> None:
    """Thousands of them, one each file: the offsets that its TOC speaks of."""
    converted = convert_tar(b"")
    assert converted.toc_offset in spooled(converted.blob, converted.layer.diff_id, keep_blob=True)[1]


def test_files_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the process, TMPDIR is clean."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Spool(keep_blob=True) as spool:
        spool.append(b"x" * 100)
        assert list(tmp_path.iterdir()) == []
        assert spool.size == 100


def test_a_full_disk_is_reported_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk and a missing folder: LocalError, and TMPDIR as the hint."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(LocalError, match=r"/nowhere.*TMPDIR"):
        unnamed_file()
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("lazyfs.layertar.spool.unnamed_file", lambda _folder: full)
        with Spool(keep_blob=False) as spool, pytest.raises(LocalError, match=r"No space left on device.*TMPDIR"):
            spool.append(b"x")
    with Path("/dev/full").open("wb", buffering=0) as full:
        with Spool(keep_blob=False, folder="/the/store") as spool, pytest.raises(StoreFull, match=r"/the/store.*--store"):
            spool.append(b"x")


def test_the_blob_outlives_the_spool() -> None:
    """It is sent when the spool is long gone."""
    blob = gzip.compress(b"x")
    layer = Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), {}, None, {})
    with Spool(keep_blob=True) as spool:
        unpack(spool, io.BytesIO(blob).read, layer, digest_of(b"x"), lambda _count: None)
        file = spool.take_blob()
    with file:
        file.seek(0)
        assert file.read() == blob


def test_empty_members_take_no_memory_of_their_own() -> None:
    """2 MiB of nothing but empty members, 100,000 of them: a dict of where they are took 13 MB."""
    blob = gzip.compress(b"", mtime=0) * 100_000
    tracemalloc.start()
    try:
        tar, members, _ = spooled(blob, digest_of(b""), keep_blob=True)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert tar == b"" and len(members) == 100_000
    assert members[20 * 99_999] == 0 and members.get(7) is None and members.get(-20) is None


def windowed(data: bytes, log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("log", [20, 23, 27])
@pytest.mark.parametrize("later", [20, 25, 27])
def test_windows_up_to_what_zstd_takes_are_read(log: int, later: int) -> None:
    """Whatever the first frame says."""
    assert spooled(windowed(DATA[:5], log) + windowed(DATA[5:], later), digest_of(DATA))[0] == DATA


def test_window_that_is_larger_than_allowed() -> None:
    """The caller learns that the blob is right and may be unpacked with a larger one."""
    blob = windowed(DATA, 20) + windowed(DATA, 24)
    layer = Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), {}, None, {})
    with Spool(False) as one, pytest.raises(NeedsMore):
        unpack(one, io.BytesIO(blob).read, layer, digest_of(DATA + DATA), lambda _: None, careful=True)


def test_size_of_a_blob_counts_when_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that unpack to gigabytes are none the better for a manifest that calls the layer large; an honest layer that begins
    with many zeros is read the next time."""
    monkeypatch.setattr("lazyfs.layertar.spool._MIN_LIMIT", 1 << 20)
    monkeypatch.setattr("lazyfs.layertar.spool._MAX_RATIO", 40)
    tar = bytes(8 << 20)
    rest = os.urandom(3 << 20)
    blob = zstandard.compress(tar) + zstandard.compress(rest, 1)
    layer = Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob), {}, None, {})
    diff_id = digest_of(tar + rest)
    with Spool(False) as one:
        source = io.BytesIO(blob)
        with pytest.raises(NeedsMore):
            unpack(one, lambda count: source.read(min(count, 64 << 10)), layer, diff_id, lambda _: None, careful=True)
        assert one.size < len(tar) and not source.read()
    with Spool(False) as one:
        unpack(one, io.BytesIO(blob).read, layer, diff_id, lambda _: None)
        assert one.size == len(tar) + len(rest)
