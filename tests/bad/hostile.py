"""Images that are small and would cost much: a function a case, given an empty layout, as in make.py.

Each is what an attacker would push: sound as far as its digests go, a few kilobytes to a few megabytes, and described so that whoever
believes it spends gigabytes or minutes. `scale` is 1 in tests; bench/hostile.py goes further.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Final

import zstandard

from lazyfs.format.footer import build_footer
from lazyfs.format.member import compress_member
from lazyfs.format.pax import record
from lazyfs.format.toc_raw import MAX_TOC_SIZE
from tests.bad.oci import DATA, GZIP_LAYER, TOC_DIGEST, Json, Oci, file, named, sha256
from tests.tars import END, header, padded

MIB: Final = 1 << 20
ZSTD_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+zstd"


def lazy(oci: Oci, toc: Iterable[bytes], members: bytes = b"", size_field: bytes = b"") -> Json:
    """An image whose one layer has this TOC, which is compressed as it comes: it may be larger than this process should be."""
    pieces = list(toc)
    info = named("stargz.index.json")
    info.size = sum(map(len, pieces))
    head = bytearray(info.tobuf())
    if size_field:
        head[124:136] = size_field
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
    digest = hashlib.sha256()
    packed = [members, deflate.compress(bytes(head))]
    for piece in pieces:
        digest.update(piece)
        packed.append(deflate.compress(piece))
    packed += [deflate.compress(bytes(-info.size % 512 + 1024)), deflate.flush(), build_footer(len(members))]
    annotations = {TOC_DIGEST: "sha256:" + digest.hexdigest()}
    return oci.image(oci.blob(b"".join(packed), GZIP_LAYER, annotations=annotations))


def plain(oci: Oci, tar: Iterable[bytes], **fields: Json) -> Json:
    """An image whose one layer is this tar, compressed as it comes."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
    digest = hashlib.sha256()
    packed = []
    for piece in (*([header(b"%d" % oci.number, b"5")] if oci.number else []), *tar, END):
        digest.update(piece)
        packed.append(deflate.compress(piece))
    blob = b"".join((*packed, deflate.flush()))
    return oci.image(oci.blob(blob, GZIP_LAYER, diff_id="sha256:" + digest.hexdigest(), **fields))


def entries(*more: bytes) -> list[bytes]:
    """A TOC's JSON of these entries."""
    return [b'{"version":1,"entries":[', b",".join(more), b"]}"]


# TOCs


def toc_of_negative_size(oci: Oci, scale: int = 1) -> Json:
    """A member of 200 KB that inflates to 200 MB, and a tar header that gives no bound for it."""
    return lazy(oci, [b" " * MIB] * 200 * scale, size_field=b"\xff" * 11 + b"\x00")


def toc_of_blanks(oci: Oci, scale: int = 1) -> Json:
    """250 MiB of JSON in 250 KB."""
    return lazy(oci, [b'{"version":1,', *[b" " * MIB] * 250, b'"entries":[]}'])


def toc_over_a_hole(oci: Oci, scale: int = 1) -> Json:
    """A compressed TOC of nearly 256 MiB; it takes no room on disk."""
    layer = oci.lazy([file()])
    path = oci.blob_path(layer["digest"])
    with path.open("r+b") as blob:
        blob.truncate(MAX_TOC_SIZE - 100)
        blob.seek(0, os.SEEK_END)
        blob.write(build_footer(0))
    return oci.image(layer | {"size": path.stat().st_size})


def toc_that_is_stored(oci: Oci, scale: int = 1) -> Json:
    """A TOC's header, and behind it data that deflate cannot shorten: as many bytes come as are described."""
    size = min(40 * scale, 240) * MIB
    info = named("stargz.index.json")
    info.size = size
    data = os.urandom(size)
    return oci.image(oci.lazy(data, toc_member=compress_member(info.tobuf() + data + bytes(1024), 1)))


def slices(oci: Oci, scale: int = 1) -> Json:
    """200 files of 17 MB, all of them slices of one member of 17 KB."""
    member = gzip.compress(bytes(17_200_000), 9, mtime=0)
    size = 17_000_000
    digest = sha256(bytes(size))
    files = [file(f"f{number}", size=size, innerOffset=number, chunkDigest=digest, digest=digest) for number in range(200)]
    return oci.image(oci.lazy(files, members=member))


def repeated_chunks(oci: Oci, scale: int = 1) -> Json:
    """500 files, each of another number of the same chunks."""
    member = gzip.compress(bytes(8 * MIB), 9, mtime=0)
    digest = sha256(bytes(8 * MIB))
    listed = []
    for number in range(1, 40):
        listed.append(file(f"f{number}", size=number * 8 * MIB, chunkSize=8 * MIB, chunkDigest=digest, digest=digest))
        listed += [
            {"name": "", "type": "chunk", "chunkOffset": more * 8 * MIB, "chunkSize": 8 * MIB, "chunkDigest": digest}
            for more in range(1, number)
        ]
    return oci.image(oci.lazy(listed, members=member))


def xattrs(oci: Oci, scale: int = 1) -> Json:
    """Millions of extended attributes in one entry."""
    many = b",".join(b'"%x":""' % number for number in range(1_000_000 * scale))
    return lazy(oci, entries(b'{"name":"a","type":"dir","xattrs":{' + many + b"}}"))


def toc_entries(oci: Oci, scale: int = 1) -> Json:
    """Two million directories, whose names compress to nothing."""
    return lazy(oci, entries(*(b'{"name":"%d","type":"dir"}' % number for number in range(min(400_000 * scale, 1_999_999)))))


def toc_numbers(oci: Oci, scale: int = 1) -> Json:
    """A list of numbers where entries should be: 50 million values."""
    return lazy(oci, [b'{"version":1,"entries":[', *[b"1," * (MIB // 2)] * 60, b"1]}"])


def toc_strings(oci: Oci, scale: int = 1) -> Json:
    """Names that take four bytes a character, because of one character."""
    name = b"x" * 60_000 + "\U0001f600".encode()
    return lazy(oci, entries(*[b'{"name":"' + name + b'","type":"dir"}'] * 1000))


def toc_depth(oci: Oci, scale: int = 1) -> Json:
    """Each name implies two thousand directories."""
    return lazy(oci, entries(*(b'{"name":"%d%s","type":"dir"}' % (number, b"/d" * 2000) for number in range(1000))))


def toc_chunks(oci: Oci, scale: int = 1) -> Json:
    """One file in a million chunks."""
    head = b'{"name":"a","type":"reg","size":%d,"chunkSize":1,"chunkDigest":"%s"}' % (10**6, sha256(b"x").encode())
    chunk = b'{"name":"a","type":"chunk","chunkOffset":%d,"chunkSize":1,"chunkDigest":"%s"}'
    digest = sha256(b"x").encode()
    return lazy(oci, entries(head, *(chunk % (number, digest) for number in range(1, 300_000 * scale))), members=bytes(5000))


# Tars


def sparse(oci: Oci, scale: int = 1) -> Json:
    """400 files of 10 MB, each of which is one hole."""
    pax = record(b"GNU.sparse.size", b"10000000") + record(b"GNU.sparse.numblocks", b"0")
    head = header(b"x", b"x", len(pax)) + padded(pax)
    return plain(oci, (head + header(b"f%d" % number) for number in range(400)))


def pax_attributes(oci: Oci, scale: int = 1) -> Json:
    """An attribute of 64 KiB for each of many files."""
    pax = b"".join(record(b"SCHILY.xattr.user.%d" % number, bytes(65_000)) for number in range(16))
    part = header(b"x", b"x", len(pax)) + padded(pax) + header(b"f")
    return plain(oci, [part] * 250 * scale)


def pax_headers(oci: Oci, scale: int = 1) -> Json:
    """Many small extended headers."""
    pax = record(b"SCHILY.xattr.user.a", bytes(400))
    part = header(b"x", b"x", len(pax)) + padded(pax) + header(b"f")
    return plain(oci, [part * 500] * 200 * scale)


def pax_records(oci: Oci, scale: int = 1) -> Json:
    """Headers of a megabyte of the smallest records."""
    pax = b"5 a=\n" * (MIB // 5)
    part = header(b"x", b"x", len(pax)) + padded(pax) + header(b"f")
    return plain(oci, [part] * 100 * scale)


def long_names(oci: Oci, scale: int = 1) -> Json:
    """Names of a megabyte, of which next to nothing is left when they are clean."""
    part = header(b"x", b"L", MIB) + b"a/./" * (MIB // 4) + header(b"f")
    return plain(oci, [part] * 100 * scale)


def long_links(oci: Oci, scale: int = 1) -> Json:
    """Symbolic links to 4,000 bytes."""
    part = header(b"x", b"K", 4000) + padded(b"l" * 4000)
    return plain(oci, [(part + header(b"l", b"2")) * 100] * 400 * scale)


def tar_entries(oci: Oci, scale: int = 1) -> Json:
    """Nothing but headers."""
    return plain(oci, [header(b"f") * 1000] * 180 * scale)


def whiteouts(oci: Oci, scale: int = 1) -> Json:
    """Nothing but whiteouts, deep in one directory."""
    folder = b"d/" * 20
    return plain(oci, [header(folder, b"5"), *[header(folder + b".wh.x") * 1000] * 180 * scale])


def link_chains(oci: Oci, scale: int = 1) -> Json:
    """3,000 directories, each behind a chain of 255 symbolic links that go back and forth."""
    links = [header(b"l%d" % number, b"2", link=b"x/../" * 18 + b"l%d" % (number + 1)) for number in range(254)]
    return plain(oci, (header(b"x", b"5"), header(b"l254", b"5"), *links, *(header(b"l0/d%d/e" % n, b"5") for n in range(3000))))


def implied(oci: Oci, scale: int = 1) -> Json:
    """Each name implies two thousand directories."""

    def parts() -> Iterable[bytes]:
        for number in range(1000):
            name = b"%d" % number + b"/d" * 2000
            yield header(b"x", b"L", len(name)) + padded(name) + header(b"f")

    return plain(oci, parts())


# Compression


def empty_members(oci: Oci, scale: int = 1) -> Json:
    """16 MiB of empty gzip members."""
    blob = gzip.compress(b"", mtime=0) * (16 * MIB // 20 + oci.number)
    return oci.image(oci.blob(blob, GZIP_LAYER, diff_id=sha256(b""), annotations={TOC_DIGEST: sha256(DATA)}))


def zstd_windows(oci: Oci, scale: int = 1) -> Json:
    """A window of 128 MiB, the most that zstd takes unasked, filled with zeros by a few kilobytes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, write_content_size=False)
    zeros = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = b"".join([_skipped(oci.number), *(zeros.compress(bytes(MIB)) for _ in range(200)), zeros.flush()])
    return oci.image(oci.blob(blob, ZSTD_LAYER, diff_id=sha256(b"")))


def _skipped(number: int) -> bytes:
    """A frame that holds nothing but a number."""
    return b"\x50\x2a\x4d\x18\4\0\0\0" + number.to_bytes(4, "little")


def zstd_frames(oci: Oci, scale: int = 1) -> Json:
    """A megabyte of empty frames, and of frames that are skipped."""
    blob = _skipped(oci.number) + (zstandard.compress(b"") + b"\x50\x2a\x4d\x18\0\0\0\0") * 60_000
    return oci.image(oci.blob(blob, ZSTD_LAYER, diff_id=sha256(b"x")))


TOCS: Final[tuple[Callable[..., Json], ...]] = (
    toc_of_negative_size,
    toc_of_blanks,
    toc_over_a_hole,
    toc_that_is_stored,
    slices,
    repeated_chunks,
    xattrs,
    toc_entries,
    toc_numbers,
    toc_strings,
    toc_depth,
    toc_chunks,
)
LAYERS: Final[tuple[Callable[..., Json], ...]] = (
    sparse,
    pax_attributes,
    pax_headers,
    pax_records,
    long_names,
    long_links,
    tar_entries,
    whiteouts,
    link_chains,
    implied,
    empty_members,
    zstd_windows,
    zstd_frames,
)
