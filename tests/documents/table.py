"""Documents as people and programs write them: one row a document, made for an image of two layers.

`accepted` says whether lazyfs takes the image. Where skopeo and containerd both do, it must; where it does and they do not, or the
other way round, the row keeps what was found out.
"""

from __future__ import annotations

import base64
import gzip
import json
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import zstandard

from tests.bad.oci import named, tar_of
from tests.documents import content as c
from tests.documents.content import ELSEWHERE, HERE, Content, Json

Make = Callable[[Content], object]
UNKNOWN = {"architecture": "unknown", "os": "unknown"}
ARTIFACT = "application/vnd.example.artifact"
DEEP = b'[{"a":' * 4500 + b"0" + b"}]" * 4500
SKIPPABLE = b"\x5a\x2a\x4d\x18\x04\0\0\0skip"


class Case(NamedTuple):
    """A document, by what is odd about it."""

    name: str
    make: Make
    accepted: bool = True
    same: bool = True
    """Whether the tree is that of the two layers."""
    lazy: bool = True
    """Whether it is mounted lazily where its layers are."""
    slow: bool = False
    """One of several of a kind."""


def elsewhere(make: Content) -> Json:
    """An image for another machine."""
    config = make.config(**ELSEWHERE, rootfs={"type": "layers", "diff_ids": [make.layers[0].diff_id]})
    return make.manifest(config=config, layers=[make.layer(0)])


def attestation(make: Content) -> Json:
    """What BuildKit puts beside an image."""
    config = make.config(**UNKNOWN, rootfs={"type": "layers", "diff_ids": [c.sha256(b"{}")]})
    return make.manifest(config=config, layers=[make.blob(b"{}", "application/vnd.in-toto+json")])


def artifact(make: Content) -> Json:
    """An artifact's manifest."""
    empty = make.blob(b"{}", "application/vnd.oci.empty.v1+json")
    return make.manifest(artifactType=ARTIFACT, config=empty, layers=[]) | {"artifactType": ARTIFACT}


def on(entry: Json, platform: Json = HERE, **more: Any) -> Json:
    return entry | {"platform": platform} | more


def nested(make: Content, depth: int) -> Json:
    entry = make.index_of(on(elsewhere(make), ELSEWHERE), on(make.manifest()))
    for _ in range(depth):
        entry = make.index_of(entry)
    return entry


def text(make: Content, old: bytes, new: bytes, **fields: Any) -> Json:
    """A manifest whose JSON is changed as text."""
    make.manifest(**fields)
    media_type, data = make.documents.pop(make.top)
    assert old in data
    return make.document(data.replace(old, new), media_type)


def config_text(make: Content, old: bytes, new: bytes, **fields: Any) -> Json:
    """A manifest of a config whose JSON is changed as text."""
    data = make.blobs.pop(make.config(**fields)["digest"])
    assert old in data
    return make.manifest(config=make.blob(data.replace(old, new), c.OCI_CONFIG))


def carried(make: Content, own: str | None, media_type: str) -> Json:
    """A manifest that is served as `media_type`, and says `own` of itself."""
    return make.document(
        c.without({"schemaVersion": 2, "mediaType": own or ..., "config": make.config(), "layers": both(make)}), media_type
    )


def both(make: Content, kind: str = c.OCI_GZIP, **fields: Any) -> list[Json]:
    return [make.layer(number, kind, **fields) for number in (0, 1)]


def docker(make: Content, **changes: Any) -> Json:
    body = {
        "mediaType": c.DOCKER_MANIFEST,
        "config": make.config(media_type=c.DOCKER_CONFIG),
        "layers": both(make, c.DOCKER_GZIP),
    }
    return make.manifest(**(body | changes))


def packed(make: Content, media_type: str, pack: Callable[[bytes], bytes]) -> Json:
    """The upper layer's tar, packed by `pack` and said to be of a type."""
    return make.manifest(layers=[make.layer(0), make.blob(pack(make.layers[1].tar), media_type)])


def of(make: Content, *layers: tuple[Json, str]) -> Json:
    """An image of layers and their diff IDs."""
    config = make.config(rootfs={"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]})
    return make.manifest(config=config, layers=[layer for layer, _ in layers])


def above(make: Content, tar: bytes, blob: bytes, media_type: str = c.OCI_GZIP) -> Json:
    """The two layers, and a third one."""
    mine = [(make.layer(number), make.layers[number].diff_id) for number in (0, 1)]
    return of(make, *mine, (make.blob(blob, media_type), c.sha256(tar)))


def odd_names(make: Content) -> Json:
    """Names with `..` in them, of a file, a hard link, a whiteout and a directory."""
    link = named("usr/../l", tarfile.LNKTYPE, "../../a")
    tar = tar_of((named("../a"), b"a"), link, named("../usr/../etc/.wh.name"), named("nosuch/../d", tarfile.DIRTYPE))
    return above(make, tar, gzip.compress(tar))


def owned(make: Content, number: int) -> Json:
    """A file and a directory of an owner."""
    tree = [named("f"), named("d", tarfile.DIRTYPE)]
    for info in tree:
        info.uid = number
    tar = tar_of(*((info, b"") for info in tree))
    return above(make, tar, gzip.compress(tar))


def embedded(make: Content) -> Json:
    data = base64.b64encode(make.layers[1].blob).decode()
    return make.manifest(layers=[make.layer(0), make.layer(1, data=data)])


def upper(make: Content) -> Json:
    layers = [{name.upper(): value for name, value in layer.items()} for layer in both(make)]
    return make.document(
        {"SchemaVersion": 2, "MediaType": c.OCI_MANIFEST, "Config": make.config(), "Layers": layers}, c.OCI_MANIFEST
    )


INDEXES = [
    Case("index", lambda make: make.index_of(on(elsewhere(make), ELSEWHERE), on(make.manifest()))),
    Case("index without a mediaType", lambda make: make.index_of(on(make.manifest()), mediaType=...)),
    Case("index inside an index", lambda make: nested(make, 1)),
    Case("index inside an index, with a platform", lambda make: make.index_of(on(make.index_of(on(make.manifest()))))),
    Case("index four deep", lambda make: nested(make, 3)),
    Case("index seven deep", lambda make: nested(make, 6), accepted=False),
    Case("second of two indexes", lambda make: make.index_of(make.index_of(on(elsewhere(make), ELSEWHERE)), make.index_of(on(make.manifest())))),
    Case("no platform, one entry", lambda make: make.index_of(make.manifest())),
    Case("no platform, an attestation", lambda make: make.index_of(make.manifest(), on(attestation(make), UNKNOWN))),
    Case("no platform, another with one", lambda make: make.index_of(on(elsewhere(make), ELSEWHERE), make.manifest())),
    Case("no platform, two, the first is ours", lambda make: make.index_of(make.manifest(), elsewhere(make))),
    Case("no platform, two, the second is ours", lambda make: make.index_of(elsewhere(make), make.manifest())),
    Case("no platform, an artifact first", lambda make: make.index_of(artifact(make), make.manifest())),
    Case("nested 9,000 deep", lambda make: make.document(json.dumps({"schemaVersion": 2, "manifests": [on(make.manifest())], "unknown": "QQ"}).encode().replace(b'"QQ"', DEEP), c.OCI_INDEX), slow=True),
    Case("platform without a word", lambda make: make.index_of(on(make.manifest(), {"architecture": "", "os": ""}))),
    Case("platform with nulls", lambda make: make.index_of(on(make.manifest(), HERE | {"variant": None, "os.features": None}))),
    Case("platform with a version", lambda make: make.index_of(on(make.manifest(), HERE | {"os.version": "1", "os.features": ["x"]}))),
    Case("platform of nobody here", lambda make: make.index_of(on(elsewhere(make), ELSEWHERE)), accepted=False),
    Case("an entry of another algorithm", lambda make: make.index_of(on(elsewhere(make), ELSEWHERE, digest="sha512:" + "a" * 128), on(make.manifest()))),
    Case("an entry whose document is missing", lambda make: make.index_of(on(elsewhere(make), ELSEWHERE, digest="sha256:" + "a" * 64), on(make.manifest()))),
    Case("artifact with our platform", lambda make: make.index_of(on(make.manifest()), on(artifact(make)))),
    Case("Docker's list", lambda make: make.index_of(on(docker(make)), media_type=c.LIST)),
    Case("Docker's list, no platform", lambda make: make.index_of(docker(make), media_type=c.LIST)),
    Case("Docker's list of OCI's manifests", lambda make: make.index_of(on(make.manifest()), media_type=c.LIST)),
    Case("OCI's index of Docker's manifests", lambda make: make.index_of(on(docker(make)))),
]  # fmt: skip
MANIFESTS = [
    Case("usual", lambda make: make.manifest()),
    Case("no mediaType", lambda make: carried(make, None, c.OCI_MANIFEST)),
    Case("no mediaType anywhere", lambda make: carried(make, None, "application/json")),
    Case("mediaType null", lambda make: text(make, b'"mediaType": "%s"' % c.OCI_MANIFEST.encode(), b'"mediaType": null')),
    Case("Docker's type in the document, OCI's outside", lambda make: carried(make, c.DOCKER_MANIFEST, c.OCI_MANIFEST)),
    Case("OCI's type in the document, Docker's outside", lambda make: carried(make, c.OCI_MANIFEST, c.DOCKER_MANIFEST)),
    Case("unknown type in the document", lambda make: carried(make, "application/json", c.OCI_MANIFEST)),
    Case("type with a charset", lambda make: carried(make, c.OCI_MANIFEST, c.OCI_MANIFEST + "; charset=utf-8")),
    Case("served as an index", lambda make: carried(make, c.OCI_MANIFEST, c.OCI_INDEX), accepted=False),
    Case("no schemaVersion", lambda make: make.manifest(schemaVersion=...)),
    Case("schemaVersion null", lambda make: make.manifest(schemaVersion=None)),
    Case("schemaVersion 1", lambda make: make.manifest(schemaVersion=1)),
    Case("Docker's schema 1", lambda make: make.document({"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": [{"blobSum": make.layer(0)["digest"]}], "history": [{"v1Compatibility": "{}"}]}, c.DOCKER + "distribution.manifest.v1+json"), accepted=False),
    Case("names in capitals", upper),
    Case("layers twice", lambda make: text(make, b"}]}", b'}], "layers": %s}' % json.dumps(both(make)).encode(), layers=[make.layer(0)])),
    Case("index and manifest at once", lambda make: make.manifest(manifests=[]), accepted=False),
    Case("manifests null", lambda make: make.manifest(manifests=None)),
    Case("annotations null", lambda make: make.manifest(annotations=None, subject=None, artifactType=None)),
    Case("annotation null", lambda make: make.manifest(annotations={"a": None})),
    Case("annotation a number", lambda make: make.manifest(annotations={"a": 1}), accepted=False),
    Case("byte order mark", lambda make: text(make, b'{"schemaV', b'\xef\xbb\xbf{"schemaV'), accepted=False),
    Case("line ends behind it", lambda make: text(make, b"}]}", b"}]}\r\n \t\n")),
    Case("not UTF-8", lambda make: text(make, b"QQ", b"\xe9\xff", annotations={"a": "QQ"})),
    Case("half a surrogate pair", lambda make: text(make, b"QQ", b"\\ud800", annotations={"a": "QQ"})),
    Case("numbers without end", lambda make: text(make, b'"QQ"', b"[1e400, %s]" % (b"9" * 5000), unknown="QQ")),
    Case("nested 9,000 deep", lambda make: text(make, b'"QQ"', DEEP, unknown="QQ"), slow=True),
    Case("nested 11,000 deep", lambda make: text(make, b'"QQ"', b"[" * 11_000 + b"]" * 11_000, unknown="QQ"), accepted=False, slow=True),
    Case("unknown fields", lambda make: make.manifest(unknown={"a": [1, None]}, artifactType=ARTIFACT)),
    Case("no layers", of, same=False),
    Case("no layers, no field", lambda make: text(make, b', "layers": []', b"", layers=[], config=make.config(rootfs={"type": "layers", "diff_ids": None})), same=False),
]  # fmt: skip
LAYERS = [
    Case("gzip called tar", lambda make: packed(make, c.OCI_TAR, gzip.compress), lazy=False),
    Case("gzip called zstd", lambda make: packed(make, c.OCI_ZSTD, gzip.compress), lazy=False),
    Case("zstd called gzip", lambda make: packed(make, c.OCI_GZIP, zstandard.compress), lazy=False),
    Case("zstd called Docker's tar", lambda make: packed(make, c.DOCKER_TAR, zstandard.compress), lazy=False),
    Case("zstd behind a skippable frame", lambda make: packed(make, c.OCI_ZSTD, lambda tar: SKIPPABLE + zstandard.compress(tar)), lazy=False),
    Case("tar called gzip", lambda make: packed(make, c.OCI_GZIP, bytes), lazy=False),
    Case("tar called zstd", lambda make: packed(make, c.OCI_ZSTD, bytes), lazy=False),
    Case("tar called tar", lambda make: packed(make, c.OCI_TAR, bytes), lazy=False),
    Case("the blobs called tars", lambda make: make.manifest(layers=both(make, c.OCI_TAR))),
    Case("the blobs called zstd", lambda make: make.manifest(layers=both(make, c.OCI_ZSTD))),
    Case("Docker's types", docker),
    Case("Docker's types in OCI's manifest", lambda make: make.manifest(layers=both(make, c.DOCKER_GZIP))),
    Case("OCI's types in Docker's manifest", lambda make: docker(make, layers=both(make))),
    Case("foreign, and here", lambda make: make.manifest(layers=both(make, c.OCI + "layer.nondistributable.v1.tar+gzip"))),
    Case("foreign, Docker's, and here", lambda make: docker(make, layers=both(make, c.DOCKER + "image.rootfs.foreign.diff.tar.gzip"))),
    Case("unknown type", lambda make: make.manifest(layers=both(make, "application/octet-stream")), accepted=False),
    Case("nulls", lambda make: make.manifest(layers=[layer | dict.fromkeys(["urls", "data", "platform", "artifactType"]) for layer in both(make)])),
    Case("null annotation", lambda make: make.manifest(layers=[layer | {"annotations": {**layer.get("annotations", {}), "a": None}} for layer in both(make)])),
    Case("TOC digests of nothing here", lambda make: make.manifest(layers=both(make, annotations={c.TOC_DIGEST: c.sha256(b"else")})), lazy=False),
    Case("TOC digests that are none", lambda make: make.manifest(layers=both(make, annotations={c.TOC_DIGEST: "yes"})), lazy=False),
    Case("data in the descriptor", embedded),
    Case("size missing", lambda make: make.manifest(layers=[make.layer(0), make.layer(1, size=...)]), accepted=False),
    Case("an empty tar", lambda make: above(make, bytes(1024), gzip.compress(bytes(1024))), lazy=False),
    Case("an empty gzip", lambda make: above(make, b"", gzip.compress(b"")), lazy=False),
    Case("no bytes", lambda make: above(make, b"", b"", c.OCI_TAR), lazy=False),
    Case("the same layer twice", lambda make: above(make, make.layers[1].tar, make.layers[1].blob), lazy=False),
    Case("names that climb", odd_names, same=False, lazy=False),
    Case("an owner of all ones", lambda make: owned(make, 2**32 - 1), same=False, lazy=False, slow=True),
    Case("an owner of 33 bits", lambda make: owned(make, 2**32 + 5), same=False, lazy=False, slow=True),
    Case("another diff ID", lambda make: above(make, b"else", gzip.compress(bytes(1024))), accepted=False, lazy=False),
]  # fmt: skip
CONFIGS = [
    Case("no config field", lambda make: make.manifest(config=make.config(config=...))),
    Case("nulls in it", lambda make: make.manifest(config=make.config(config=dict.fromkeys(["Env", "Cmd", "Entrypoint", "Labels", "User", "WorkingDir"]), history=None, created=None, author=None))),
    Case("null", lambda make: make.manifest(config=make.config(config=None))),
    Case("nested 9,000 deep", lambda make: config_text(make, b'"QQ"', DEEP, unknown="QQ")),
    Case("null in a list", lambda make: make.manifest(config=make.config(config={"Env": [None, "A=b"]}, history=[None]))),
    Case("null label and volume", lambda make: make.manifest(config=make.config(config={"Labels": {"a": None}, "Volumes": {"/a": None}}))),
    Case("no platform", lambda make: make.manifest(config=make.config(architecture=..., os=...))),
    Case("platform null", lambda make: make.manifest(config=make.config(architecture=None, os=None, variant=None))),
    Case("another platform", lambda make: make.manifest(config=make.config(**ELSEWHERE))),
    Case("rootfs without a type", lambda make: make.manifest(config=make.config(rootfs={"diff_ids": [layer.diff_id for layer in make.layers]}))),
    Case("rootfs of another type", lambda make: make.manifest(config=make.config(rootfs={"type": "x", "diff_ids": [layer.diff_id for layer in make.layers]}))),
    Case("RootFS", lambda make: make.manifest(config=make.config(rootfs=..., RootFS={"Type": "layers", "Diff_IDs": [layer.diff_id for layer in make.layers]}))),
    Case("short history", lambda make: make.manifest(config=make.config(history=[{"created_by": "x"}]))),
    Case("long history", lambda make: make.manifest(config=make.config(history=[{"created_by": "x"}] * 9))),
    Case("not UTF-8 in it", lambda make: config_text(make, b"QQ", b"Ren\xe9", author="QQ")),
    Case("line end behind it", lambda make: config_text(make, b'"]}}', b'"]}}\n')),
    Case("unusual media type", lambda make: make.manifest(config=make.config(media_type="application/vnd.example.config+json"))),
    Case("no media type", lambda make: make.manifest(config={name: value for name, value in make.config().items() if name != "mediaType"})),
    Case("Docker's in OCI's manifest", lambda make: make.manifest(config=make.config(media_type=c.DOCKER_CONFIG))),
    Case("large label", lambda make: make.manifest(config=make.config(config={"Labels": {"a": "x" * (1 << 20)}}))),
    Case("fewer diff IDs", lambda make: make.manifest(config=make.config(rootfs={"type": "layers", "diff_ids": [make.layers[0].diff_id]})), accepted=False),
]  # fmt: skip
TABLE = [
    case._replace(name=f"{kind}: {case.name}")
    for kind, cases in (("index", INDEXES), ("manifest", MANIFESTS), ("layer", LAYERS), ("config", CONFIGS))
    for case in cases
]
