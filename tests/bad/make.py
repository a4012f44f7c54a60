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
    return lambda oci: oci.image(oci.lazy([file()]), oci.plain(tar_of(), media_type))


def sound(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]))


def ordinary(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]), oci.plain(tar_of(named("file"))))


def convertible(oci: Oci) -> Json:
    return oci.image(oci.plain(tar_of((named("file"), DATA))))


def bad_upper_layer(oci: Oci) -> Json:
    return oci.image(oci.plain(tar_of((named("file"), DATA))), oci.plain(tar_of(named("it", tarfile.LNKTYPE, "gone"))))


# Digests, and what they are of


def manifest_of_another_digest(oci: Oci) -> Json:
    described = sound(oci)
    oci.blob_path(described["digest"]).write_bytes(b"{}")
    return described


def manifest_missing(oci: Oci) -> Json:
    described = sound(oci)
    oci.blob_path(described["digest"]).unlink()
    return described


def manifest_of_no_digest(oci: Oci) -> Json:
    return oci.tag(sound(oci) | {"digest": "sha256:12"})


def manifest_of_sha512(oci: Oci) -> Json:
    return oci.tag(sound(oci) | {"digest": "sha512:" + 128 * "a"})


def config_missing(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]), config={"mediaType": CONFIG, "digest": ELSEWHERE, "size": 2})


def config_of_another_digest(oci: Oci) -> Json:
    layer = oci.lazy([file()])
    config = oci.config([layer])
    oci.blob_path(config["digest"]).write_bytes(b"{}")
    return oci.image(layer, config=config)


def layer_without_digest(oci: Oci) -> Json:
    layer = oci.lazy([file()])
    del layer["digest"]
    return oci.image(layer)


def layer_missing(oci: Oci) -> Json:
    layer = oci.lazy([file()])
    oci.blob_path(layer["digest"]).unlink()
    return oci.image(layer)


def plain_layer_of_another_digest(oci: Oci) -> Json:
    layer = oci.plain(tar_of(named("file")))
    other = oci.plain(tar_of(named("eile")))
    os.replace(oci.blob_path(other["digest"]), oci.blob_path(layer["digest"]))
    return oci.image(layer | {"size": oci.blob_path(layer["digest"]).stat().st_size})


def plain_layer_of_another_diff_id(oci: Oci) -> Json:
    return oci.image(oci.plain(tar_of(named("file")), diff_id=ELSEWHERE))


def toc_of_another_digest(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()], toc_digest=ELSEWHERE))


def toc_of_no_digest(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()], toc_digest="sha256:12"))


def toc_of_no_annotation(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]) | {"annotations": {}})


def file_of_another_digest(oci: Oci) -> Json:
    return oci.image(oci.lazy([file(chunkDigest=ELSEWHERE)]))


# Blobs cut short


def lazy_layer_truncated(oci: Oci) -> Json:
    layer = oci.lazy([file()])
    os.truncate(oci.blob_path(layer["digest"]), layer["size"] - 60)
    return oci.image(layer)


def lazy_layer_truncated_and_said_so(oci: Oci) -> Json:
    layer = oci.lazy([file()])
    os.truncate(oci.blob_path(layer["digest"]), layer["size"] - 60)
    return oci.image(layer | {"size": layer["size"] - 60})


def plain_layer_truncated(oci: Oci) -> Json:
    layer = oci.plain(tar_of(named("file")))
    os.truncate(oci.blob_path(layer["digest"]), layer["size"] - 20)
    return oci.image(layer)


def plain_layer_truncated_and_said_so(oci: Oci) -> Json:
    layer = oci.plain(tar_of(named("file")))
    short = oci.blob_path(layer["digest"]).read_bytes()[:-20]
    return oci.image(oci.blob(short, GZIP_LAYER, diff_id=layer["diff_id"]))


def plain_layer_bomb(oci: Oci) -> Json:
    """Some kilobytes of zstd, which become a little more than a GiB of zeros."""
    zeros = zstandard.ZstdCompressor().compressobj()
    blob = b"".join(zeros.compress(bytes(32 << 20)) for _ in range(33)) + zeros.flush()
    return oci.image(oci.blob(blob, ZSTD_LAYER, diff_id=ELSEWHERE))


def layer_of_51_bytes(oci: Oci) -> Json:
    return oci.image(oci.blob(build_footer(0), GZIP_LAYER, annotations={TOC_DIGEST: ELSEWHERE}))


def layer_of_no_bytes(oci: Oci) -> Json:
    return oci.image(oci.blob(b"", GZIP_LAYER, annotations={TOC_DIGEST: ELSEWHERE}))


# Documents that are no image, or none of ours


def manifest_schema_1(oci: Oci) -> Json:
    schema_1 = "application/vnd.docker.distribution.manifest.v1+json"
    return oci.tag(oci.document({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}, schema_1))


def manifest_for_others(oci: Oci) -> Json:
    described = sound(oci) | {"platform": {"os": "linux", "architecture": "s390x"}}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [described, described | {"platform": {"os": "plan9", "architecture": "mips"}}],
    }
    return oci.tag(oci.document(index, INDEX))


def manifest_no_json(oci: Oci) -> Json:
    return oci.tag(oci.blob(b"<html>", MANIFEST))


def manifest_and_index(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]), manifests=[])


def manifest_over_4_mib(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]), annotations={"long": (4 << 20) * "x"})


def indexes_too_deep(oci: Oci) -> Json:
    inner = sound(oci)
    for _ in range(6):
        inner = oci.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}, INDEX)
    return oci.tag(inner)


def layer_size_negative(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()], size=-1))


def layer_size_absurd(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()], size=1 << 63))


def helm_chart(oci: Oci) -> Json:
    chart = oci.blob(b"a chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    return oci.image(chart, config=oci.document({"name": "a chart"}, "application/vnd.cncf.helm.config.v1+json"))


def wasm_module(oci: Oci) -> Json:
    return oci.image(oci.blob(b"\0asm", "application/wasm", diff_id=sha256(b"\0asm")))


def config_no_object(oci: Oci) -> Json:
    return oci.image(oci.lazy([file()]), config=oci.document([], CONFIG))


def layer_no_tar(oci: Oci) -> Json:
    return oci.image(oci.plain(b"not a tar at all" * 100))


def layer_no_gzip(oci: Oci) -> Json:
    return oci.image(oci.blob(b"no gzip", GZIP_LAYER, diff_id=NOTHING))


def layers_without_diff_ids(oci: Oci) -> Json:
    layer = oci.plain(tar_of(named("file")))
    return oci.image(layer, config=oci.config([layer], rootfs={"type": "layers", "diff_ids": []}))


encrypted_layer = layer_type(GZIP_LAYER + "+encrypted")


def foreign_layer_elsewhere(oci: Oci) -> Json:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    layer = oci.plain(tar_of(named("file")), kind)
    away = oci.blob_path(layer["digest"])
    layer["urls"] = [away.rename(oci.path / "away").as_uri(), "ftp://127.0.0.1/layer"]  # neither scheme is followed
    return oci.image(layer)


def zstd_layer(oci: Oci) -> Json:
    return oci.image(oci.blob(b"\x28\xb5\x2f\xfd" + bytes(100), ZSTD_LAYER, annotations={TOC_DIGEST: NOTHING}))


def layout_without_marker(oci: Oci) -> Json:
    described = sound(oci)
    (oci.path / "oci-layout").unlink()
    return described


def layout_without_the_tag(oci: Oci) -> Json:
    described = sound(oci)
    index = oci.path / "index.json"
    index.write_text(index.read_text().replace('"v1"', '"v2"'))
    return described
