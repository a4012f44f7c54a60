"""Images that break one rule each: a function a case, given an empty layout; those about TOCs are in tocs.py.

Nothing binary is committed: a reader sees what is wrong with each. The table in test_bad.py says what becomes of them.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable

import zstandard

from lazyfs.format.footer import build_footer
from tests.bad.oci import CONFIG, DATA, GZIP_LAYER, INDEX, MANIFEST, TOC_DIGEST, Json, Oci, file, named, sha256, tar_of

ELSEWHERE = sha256(b"nobody has this")
ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
NOTHING = sha256(b"")


def layer_type(media_type: str) -> Callable[[Oci], Json]:
    """An image whose second layer is said to be of this type."""
    return lambda it: it.image(it.lazy([file()]), it.plain(tar_of(), media_type))


def sound(it: Oci) -> Json:
    return it.image(it.lazy([file()]))


def ordinary(it: Oci) -> Json:
    return it.image(it.lazy([file()]), it.plain(tar_of(named("file"))))


def convertible(it: Oci) -> Json:
    return it.image(it.plain(tar_of((named("file"), DATA))))


def bad_upper_layer(it: Oci) -> Json:
    return it.image(it.plain(tar_of((named("file"), DATA))), it.plain(tar_of(named("it", tarfile.LNKTYPE, "gone"))))


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


def plain_layer_bomb(it: Oci) -> Json:
    """Some kilobytes of zstd, which become a little more than a GiB of zeros."""
    zeros = zstandard.ZstdCompressor().compressobj()
    blob = b"".join(zeros.compress(bytes(32 << 20)) for _ in range(33)) + zeros.flush()
    return it.image(it.blob(blob, ZSTD_LAYER, diff_id=ELSEWHERE))


def layer_of_51_bytes(it: Oci) -> Json:
    return it.image(it.blob(build_footer(0), GZIP_LAYER, annotations={TOC_DIGEST: ELSEWHERE}))


def layer_of_no_bytes(it: Oci) -> Json:
    return it.image(it.blob(b"", GZIP_LAYER, annotations={TOC_DIGEST: ELSEWHERE}))


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


def indexes_too_deep(it: Oci) -> Json:
    inner = sound(it)
    for _ in range(6):
        inner = it.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}, INDEX)
    return it.tag(inner)


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
    return it.image(it.plain(b"not a tar at all" * 100))


def layer_no_gzip(it: Oci) -> Json:
    return it.image(it.blob(b"no gzip", GZIP_LAYER, diff_id=NOTHING))


def layers_without_diff_ids(it: Oci) -> Json:
    layer = it.plain(tar_of(named("file")))
    return it.image(layer, config=it.config([layer], rootfs={"type": "layers", "diff_ids": []}))


encrypted_layer = layer_type(GZIP_LAYER + "+encrypted")


def foreign_layer_elsewhere(it: Oci) -> Json:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layer = it.plain(tar_of(named("file")), kind)
    away = it.blob_path(layer["digest"])
    layer["urls"] = [away.rename(it.path / "away").as_uri(), "ftp://127.0.0.1/layer"]  # neither scheme is followed
    return it.image(layer)


def zstd_layer(it: Oci) -> Json:
    return it.image(it.blob(b"\x28\xb5\x2f\xfd" + bytes(100), ZSTD_LAYER, annotations={TOC_DIGEST: NOTHING}))


def layout_without_marker(it: Oci) -> Json:
    described = sound(it)
    (it.path / "oci-layout").unlink()
    return described


def layout_without_the_tag(it: Oci) -> Json:
    described = sound(it)
    index = it.path / "index.json"
    index.write_text(index.read_text().replace('"v1"', '"v2"'))
    return described
