"""Images that break one rule each: a function a case, given an empty layout.

Nothing binary is committed: a reader sees what is wrong with each. The table in test_bad.py says what becomes of them.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

from lazyfs.format.footer import build_footer
from lazyfs.format.member import compress_member
from lazyfs.format.toc import MAX_ENTRIES, MAX_TOC_SIZE
from tests.bad.oci import (
    CONFIG,
    DATA,
    GZIP_LAYER,
    INDEX,
    MANIFEST,
    MEMBER,
    TOC_DIGEST,
    Json,
    Oci,
    chunk,
    file,
    named,
    sha256,
    tar_of,
    toc_tar,
)

ELSEWHERE = sha256(b"nobody has this")
NOTHING = sha256(b"")


def toc(value: Any, **layer: Any) -> Callable[[Oci], Json]:
    """The image of one layer with this TOC: its entries, or its bytes."""
    return lambda it: it.image(it.lazy(value, **layer))


def tar(*members: tarfile.TarInfo) -> Callable[[Oci], Json]:
    """The image of one ordinary layer with these members."""
    return lambda it: it.image(it.plain(tar_of(*members)))


def layer_type(media_type: str) -> Callable[[Oci], Json]:
    """An image whose second layer is said to be of this type."""
    return lambda it: it.image(it.lazy([file()]), it.plain(tar_of(), media_type))


def chunks(*more: Json, size: int = 2 * len(DATA), **first: Any) -> Callable[[Oci], Json]:
    """A file of several chunks."""
    return toc([file(size=size, chunkSize=len(DATA), **first), *more])


def sound(it: Oci) -> Json:
    return it.image(it.lazy([file()]))


def ordinary(it: Oci) -> Json:
    return it.image(it.lazy([file()]), it.plain(tar_of(named("file"))))


# Digests, and what they are of


def manifest_of_another_digest(it: Oci) -> Json:
    described = sound(it)
    it.blob_path(described["digest"]).write_bytes(b"{}")
    return described


def manifest_missing(it: Oci) -> Json:
    described = sound(it)
    it.blob_path(described["digest"]).unlink()
    return described


def manifest_of_no_digest(it: Oci) -> Json:
    return it.tag(sound(it) | {"digest": "sha256:12"})


def manifest_of_sha512(it: Oci) -> Json:
    return it.tag(sound(it) | {"digest": "sha512:" + 128 * "a"})


def config_missing(it: Oci) -> Json:
    return it.image(it.lazy([file()]), config={"mediaType": CONFIG, "digest": ELSEWHERE, "size": 2})


def config_of_another_digest(it: Oci) -> Json:
    layer = it.lazy([file()])
    config = it.config([layer])
    it.blob_path(config["digest"]).write_bytes(b"{}")
    return it.image(layer, config=config)


def layer_without_digest(it: Oci) -> Json:
    layer = it.lazy([file()])
    del layer["digest"]
    return it.image(layer)


def layer_missing(it: Oci) -> Json:
    layer = it.lazy([file()])
    it.blob_path(layer["digest"]).unlink()
    return it.image(layer)


def plain_layer_of_another_digest(it: Oci) -> Json:
    layer = it.plain(tar_of(named("file")))
    other = it.plain(tar_of(named("eile")))
    os.replace(it.blob_path(other["digest"]), it.blob_path(layer["digest"]))
    return it.image(layer | {"size": it.blob_path(layer["digest"]).stat().st_size})


def plain_layer_of_another_diff_id(it: Oci) -> Json:
    return it.image(it.plain(tar_of(named("file")), diff_id=ELSEWHERE))


def toc_of_another_digest(it: Oci) -> Json:
    return it.image(it.lazy([file()], toc_digest=ELSEWHERE))


def toc_of_no_digest(it: Oci) -> Json:
    return it.image(it.lazy([file()], toc_digest="sha256:12"))


def toc_that_nobody_vouches_for(it: Oci) -> Json:
    return it.image(it.lazy([file()]) | {"annotations": {}})


def file_of_another_digest(it: Oci) -> Json:
    return it.image(it.lazy([file(chunkDigest=ELSEWHERE)]))


chunk_without_digest = chunks(chunk(len(DATA), chunkDigest=""))
file_without_digest = toc([file(digest="", chunkDigest="")])
file_of_sha512 = toc([file(chunkDigest="sha512:" + 128 * "a")])


# Blobs cut short


def lazy_layer_truncated(it: Oci) -> Json:
    layer = it.lazy([file()])
    os.truncate(it.blob_path(layer["digest"]), layer["size"] - 60)
    return it.image(layer)


def lazy_layer_truncated_and_said_so(it: Oci) -> Json:
    layer = it.lazy([file()])
    os.truncate(it.blob_path(layer["digest"]), layer["size"] - 60)
    return it.image(layer | {"size": layer["size"] - 60})


def plain_layer_truncated(it: Oci) -> Json:
    layer = it.plain(tar_of(named("file")))
    os.truncate(it.blob_path(layer["digest"]), layer["size"] - 20)
    return it.image(layer)


def plain_layer_truncated_and_said_so(it: Oci) -> Json:
    layer = it.plain(tar_of(named("file")))
    short = it.blob_path(layer["digest"]).read_bytes()[:-20]
    return it.image(it.blob(short, GZIP_LAYER, diff_id=layer["diff_id"]))


def layer_of_51_bytes(it: Oci) -> Json:
    return it.image(it.blob(build_footer(0), GZIP_LAYER, annotations={TOC_DIGEST: ELSEWHERE}))


def layer_of_no_bytes(it: Oci) -> Json:
    return it.image(it.blob(b"", GZIP_LAYER, annotations={TOC_DIGEST: ELSEWHERE}))


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


def toc_of_too_many_entries(it: Oci) -> Json:
    entries = b",".join([b'{"name":"","type":"dir"}'] * (MAX_ENTRIES + 1))
    return it.image(it.lazy(b'{"version": 1, "entries": [' + entries + b"]}"))


def toc_of_far_too_many_entries(it: Oci) -> Json:
    return it.image(it.lazy(b'{"version": 1, "entries": [' + b"{" * (3 * MAX_ENTRIES + 1)))


def toc_over_256_mib(it: Oci) -> Json:
    header = named("stargz.index.json")
    header.size = MAX_TOC_SIZE + 1
    return it.image(it.lazy([], toc_member=compress_member(header.tobuf() + bytes(1 << 20))))


def toc_over_256_mib_compressed(it: Oci) -> Json:
    """A blob of which all is TOC; its hole takes no room."""
    layer = it.lazy([file()])
    path = it.blob_path(layer["digest"])
    with path.open("r+b") as blob:
        blob.truncate(MAX_TOC_SIZE + 100)
        blob.seek(0, os.SEEK_END)
        blob.write(build_footer(0))
    return it.image(layer | {"size": path.stat().st_size})


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


def bomb(it: Oci) -> Json:
    """Sound as far as anybody should look: the member's first bytes are the file, and 4 GiB of zeros follow."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = deflate.compress(DATA) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(32 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return it.image(it.lazy([file()], start + 128 * zeros + (1 << 20).to_bytes(8, "little")))


def bomb_in_the_toc(it: Oci) -> Json:
    return it.image(it.lazy([], toc_member=toc_member_bomb(), toc_digest=sha256(bytes(1000))))


# Names, links, attributes


name_climbs = toc([file("a/../../etc/passwd")])
name_absolute = toc([file("/etc/passwd")])
name_with_nul = toc([file("a\0b")])
name_too_long = toc([file(256 * "n")])
name_too_deep = toc([file("/".join("d" * 300_000))])


def names_too_deep(it: Oci) -> Json:
    return it.image(it.lazy([file("/".join([f"{number:04}", *(["d"] * 2000)])) for number in range(3000)]))


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
owner_negative = toc([file(uid=-1)])
owner_absurd = toc([file(gid=1 << 32)])
device_absurd = toc([{"name": "it", "type": "char", "devMajor": 1 << 40}])
time_no_time = toc([file(modtime="yesterday")])
xattr_absurd = toc([file(xattrs={"user." + 300 * "x": ""})])

tar_climbs = tar(named("../it"))
tar_too_deep = tar(named("/".join("d" * 300_000)))
tar_links_to_nothing = tar(named("it", tarfile.LNKTYPE, "gone"))
tar_links_to_a_later_file = tar(named("it", tarfile.LNKTYPE, "file"), named("file"))


# Documents that are no image, or none of ours


def manifest_schema_1(it: Oci) -> Json:
    schema_1 = "application/vnd.docker.distribution.manifest.v1+json"
    return it.tag(it.document({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}, schema_1))


def manifest_for_others(it: Oci) -> Json:
    described = sound(it) | {"platform": {"os": "linux", "architecture": "s390x"}}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [described, described | {"platform": {"os": "plan9", "architecture": "mips"}}],
    }
    return it.tag(it.document(index, INDEX))


def manifest_no_json(it: Oci) -> Json:
    return it.tag(it.blob(b"<html>", MANIFEST))


def manifest_and_index(it: Oci) -> Json:
    return it.image(it.lazy([file()]), manifests=[])


def manifest_over_4_mib(it: Oci) -> Json:
    return it.image(it.lazy([file()]), annotations={"long": (4 << 20) * "x"})


def index_in_itself(it: Oci) -> Json:
    inner = it.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [sound(it)]}, INDEX)
    return it.tag(it.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}, INDEX))


def layer_size_negative(it: Oci) -> Json:
    return it.image(it.lazy([file()], size=-1))


def layer_size_absurd(it: Oci) -> Json:
    return it.image(it.lazy([file()], size=1 << 63))


def helm_chart(it: Oci) -> Json:
    chart = it.blob(b"a chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    return it.image(chart, config=it.document({"name": "a chart"}, "application/vnd.cncf.helm.config.v1+json"))


def wasm_module(it: Oci) -> Json:
    return it.image(it.blob(b"\0asm", "application/wasm", diff_id=sha256(b"\0asm")))


def config_no_object(it: Oci) -> Json:
    return it.image(it.lazy([file()]), config=it.document([], CONFIG))


def layer_no_tar(it: Oci) -> Json:
    return it.image(it.plain(b"no tar at all" * 100))


def layer_no_gzip(it: Oci) -> Json:
    return it.image(it.blob(b"no gzip", GZIP_LAYER, diff_id=NOTHING))


def layers_without_diff_ids(it: Oci) -> Json:
    layer = it.plain(tar_of(named("file")))
    return it.image(layer, config=it.config([layer], rootfs={"type": "layers", "diff_ids": []}))


encrypted_layer = layer_type(GZIP_LAYER + "+encrypted")
foreign_layer = layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
nondistributable_layer = layer_type("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
zstd_layer = toc([file()], mediaType="application/vnd.oci.image.layer.v1.tar+zstd")


def layout_without_marker(it: Oci) -> Json:
    described = sound(it)
    (it.path / "oci-layout").unlink()
    return described


def layout_without_the_tag(it: Oci) -> Json:
    described = sound(it)
    index = it.path / "index.json"
    index.write_text(index.read_text().replace('"v1"', '"v2"'))
    return described
