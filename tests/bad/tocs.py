"""Layers whose TOC breaks one rule each: a function a case, given an empty layout, as in make.py."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

from lazyfs.format.footer import build_footer
from lazyfs.format.member import compress_member
from lazyfs.format.toc_raw import MAX_ENTRIES, MAX_TOC_SIZE
from tests.bad.oci import DATA, MEMBER, Json, Oci, chunk, file, named, sha256, tar_of, toc_tar

ELSEWHERE = sha256(b"nobody has this")


def toc(value: Any, **layer: Any) -> Callable[[Oci], Json]:
    """The image of one layer with this TOC: its entries, or its bytes."""
    return lambda oci: oci.image(oci.lazy(value, **layer))


def tar(*members: tarfile.TarInfo) -> Callable[[Oci], Json]:
    """The image of one ordinary layer with these members."""
    return lambda oci: oci.image(oci.plain(tar_of(*members)))


def chunks(*more: Json, size: int = 2 * len(DATA), **first: Any) -> Callable[[Oci], Json]:
    """A file of several chunks."""
    return toc([file(size=size, chunkSize=len(DATA), **first), *more])


# Digests, and what they are of


chunk_without_digest = chunks(chunk(len(DATA), chunkDigest=""))
file_without_digest = toc([file(digest="", chunkDigest="")])
file_of_sha512 = toc([file(chunkDigest="sha512:" + 128 * "a")])


# TOCs that are none


toc_no_json = toc(b"PK\x03\x04 something else")
toc_no_utf8 = toc(b'{"version": 1, "entries": [{"name": "caf\xe9", "type": "dir"}]}')
toc_no_object = toc(b"[]")
toc_without_entries = toc(b'{"version": 1}')
toc_version_2 = toc(b'{"version": 2, "entries": []}')
toc_nested = toc(b'{"version": 1, "entries": ' + b"[" * 100_000)
toc_begins_with_a_chunk = toc([chunk(0)])
toc_entry_without_name = toc([{"type": "dir"}])
toc_entry_of_unknown_type = toc([{"name": "it", "type": "socket"}])
toc_member_no_gzip = toc([file()], toc_member=b"BZh9" + bytes(100))
toc_member_cut_short = toc([file()], toc_member=compress_member(toc_tar(b"{}"))[:40])
toc_under_another_name = toc([file()], toc_member=compress_member(toc_tar(b"{}", "index.json")))
toc_shorter_than_it_says = toc([file()], toc_member=compress_member(toc_tar(bytes(2000))[:1000]))


def toc_of_too_many_entries(oci: Oci) -> Json:
    entries = b",".join([b'{"name":"","type":"dir"}'] * (MAX_ENTRIES + 1))
    return oci.image(oci.lazy(b'{"version": 1, "entries": [' + entries + b"]}"))


def toc_of_far_too_many_entries(oci: Oci) -> Json:
    return oci.image(oci.lazy(b'{"version": 1, "entries": [' + b"{" * (3 * MAX_ENTRIES + 1)))


def toc_over_256_mib(oci: Oci) -> Json:
    header = named("stargz.index.json")
    header.size = MAX_TOC_SIZE + 1
    return oci.image(oci.lazy([], toc_member=compress_member(header.tobuf() + bytes(1 << 20))))


def toc_over_256_mib_compressed(oci: Oci) -> Json:
    """A blob of which all is TOC; its hole takes no room."""
    layer = oci.lazy([file()])
    path = oci.blob_path(layer["digest"])
    with path.open("r+b") as blob:
        blob.truncate(MAX_TOC_SIZE + 100)
        blob.seek(0, os.SEEK_END)
        blob.write(build_footer(0))
    return oci.image(layer | {"size": path.stat().st_size})


# Chunks and where they lie


chunks_overlap = chunks(chunk(len(DATA) - 1))
chunks_leave_a_gap = chunks(chunk(len(DATA) + 1, chunkSize=len(DATA) - 1))
chunks_end_early = chunks(chunk(len(DATA), chunkSize=10))
chunks_descend = chunks(chunk(2 * len(DATA)), chunk(len(DATA)), size=3 * len(DATA))
chunks_reach_over_the_end = chunks(chunk(len(DATA), chunkSize=len(DATA) + 1))
chunks_of_a_link = toc([{"name": "it", "type": "symlink", "linkName": "file"}, chunk(0)])
chunks_of_an_empty_file = toc([{"name": "it", "type": "reg"}, chunk(0)])
chunk_missing = chunks()
chunk_size_negative = toc([file(chunkSize=-5)])
chunk_size_absurd = toc([file(size=1 << 40)])
file_size_negative = toc([file(size=-1)])
file_size_over_int64 = toc([file(size=1 << 63)])
file_size_over_everything = toc([file(size=10**30)])
file_size_a_fraction = toc([file(size=10.5)])
offset_negative = toc([file(offset=-1)])
offset_outside = toc([file(offset=1 << 40)])
offset_in_the_toc = toc([file(offset=len(MEMBER))])
inner_offset_negative = toc([file(innerOffset=-1)])
inner_offset_absurd = toc([file(innerOffset=1 << 40)])
footer_outside = toc([file()], footer=build_footer(1 << 40))
footer_no_number = toc([file()], footer=build_footer(0)[:16] + b"00000000000000zz" + build_footer(0)[32:])
footer_elsewhere = toc([file()], footer=build_footer(10))
member_ends_early = toc([file(size=len(DATA) + 100)])
member_no_gzip = toc([file()], members=b"\x1f\x8b is all there is" + bytes(50))
member_with_a_flipped_bit = toc([file()], members=MEMBER[:40] + bytes([MEMBER[40] ^ 8]) + MEMBER[41:])


def toc_member_bomb() -> bytes:
    """The beginning of a gzip member that inflates to 4 GiB: a TOC's header, and zeros behind it."""
    header = named("stargz.index.json")
    header.size = 1000
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = deflate.compress(header.tobuf()) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(32 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return start + 128 * zeros


def bomb(oci: Oci) -> Json:
    """Sound as far as anybody should look: the member's first bytes are the file, and 4 GiB of zeros follow."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = deflate.compress(DATA) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(32 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return oci.image(oci.lazy([file()], start + 128 * zeros + (1 << 20).to_bytes(8, "little")))


def bomb_in_the_toc(oci: Oci) -> Json:
    return oci.image(oci.lazy([], toc_member=toc_member_bomb(), toc_digest=sha256(bytes(1000))))


# Names, links, attributes


name_climbs = toc([file("a/../../etc/passwd")])
name_absolute = toc([file("/etc/passwd")])
name_with_nul = toc([file("a\0b")])
name_too_long = toc([file(256 * "n")])
name_too_deep = toc([file("/".join("d" * 300_000))])


def names_too_deep(oci: Oci) -> Json:
    return oci.image(oci.lazy([file("/".join([f"{number:04}", *(["d"] * 2000)])) for number in range(3000)]))


root_a_file = toc([file("./")])
link_to_nothing = toc([{"name": "it", "type": "hardlink", "linkName": "gone"}])
link_to_a_later_file = toc([{"name": "it", "type": "hardlink", "linkName": "file"}, file()])
link_to_itself = toc([{"name": "it", "type": "hardlink", "linkName": "it"}])
link_to_a_directory = toc([{"name": "dir", "type": "dir"}, {"name": "it", "type": "hardlink", "linkName": "dir"}])
link_to_what_is_replaced = toc([file(), {"name": "it", "type": "hardlink", "linkName": "file"}, file()])
link_climbs = toc([{"name": "it", "type": "hardlink", "linkName": "../file"}])
symlink_to_nothing = toc([{"name": "it", "type": "symlink"}])
file_and_directory = toc([file("it"), {"name": "it/", "type": "dir"}])
directory_and_file = toc([{"name": "it/", "type": "dir"}, file("it")])
file_with_something_below = toc([file("it"), file("it/below")])
file_with_something_above = toc([file("it/below"), file("it")])
device_absurd = toc([{"name": "it", "type": "char", "devMajor": 1 << 40}])
time_no_time = toc([file(modtime="yesterday")])
xattr_absurd = toc([file(xattrs={"user." + 300 * "x": ""})])

tar_too_deep = tar(named("/".join("d" * 300_000)))
tar_links_to_nothing = tar(named("it", tarfile.LNKTYPE, "gone"))
tar_links_to_a_later_file = tar(named("it", tarfile.LNKTYPE, "file"), named("file"))
