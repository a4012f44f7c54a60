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


def elsewhere(it: Content) -> Json:
    """An image for another machine."""
    config = it.config(**ELSEWHERE, rootfs={"type": "layers", "diff_ids": [it.layers[0].diff_id]})
    return it.manifest(config=config, layers=[it.layer(0)])


def attestation(it: Content) -> Json:
    """What BuildKit puts beside an image."""
    config = it.config(**UNKNOWN, rootfs={"type": "layers", "diff_ids": [c.sha256(b"{}")]})
    return it.manifest(config=config, layers=[it.blob(b"{}", "application/vnd.in-toto+json")])


def artifact(it: Content) -> Json:
    """An artifact's manifest."""
    empty = it.blob(b"{}", "application/vnd.oci.empty.v1+json")
    return it.manifest(artifactType=ARTIFACT, config=empty, layers=[]) | {"artifactType": ARTIFACT}


def on(entry: Json, platform: Json = HERE, **more: Any) -> Json:
    return entry | {"platform": platform} | more


def nested(it: Content, depth: int) -> Json:
    entry = it.index_of(on(elsewhere(it), ELSEWHERE), on(it.manifest()))
    for _ in range(depth):
        entry = it.index_of(entry)
    return entry


def text(it: Content, old: bytes, new: bytes, **fields: Any) -> Json:
    """A manifest whose JSON is changed as text."""
    it.manifest(**fields)
    media_type, data = it.documents.pop(it.top)
    assert old in data
    return it.document(data.replace(old, new), media_type)


def config_text(it: Content, old: bytes, new: bytes, **fields: Any) -> Json:
    """A manifest of a config whose JSON is changed as text."""
    data = it.blobs.pop(it.config(**fields)["digest"])
    assert old in data
    return it.manifest(config=it.blob(data.replace(old, new), c.OCI_CONFIG))


def carried(it: Content, own: str | None, media_type: str) -> Json:
    """A manifest that is served as `media_type`, and says `own` of itself."""
    return it.document(
        c.without({"schemaVersion": 2, "mediaType": own or ..., "config": it.config(), "layers": both(it)}), media_type
    )


def both(it: Content, kind: str = c.OCI_GZIP, **fields: Any) -> list[Json]:
    return [it.layer(number, kind, **fields) for number in (0, 1)]


def docker(it: Content, **changes: Any) -> Json:
    body = {"mediaType": c.DOCKER_MANIFEST, "config": it.config(media_type=c.DOCKER_CONFIG), "layers": both(it, c.DOCKER_GZIP)}
    return it.manifest(**(body | changes))


def packed(it: Content, media_type: str, pack: Callable[[bytes], bytes]) -> Json:
    """The upper layer's tar, packed by `pack` and said to be of a type."""
    return it.manifest(layers=[it.layer(0), it.blob(pack(it.layers[1].tar), media_type)])


def of(it: Content, *layers: tuple[Json, str]) -> Json:
    """An image of layers and their diff IDs."""
    config = it.config(rootfs={"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]})
    return it.manifest(config=config, layers=[layer for layer, _ in layers])


def above(it: Content, tar: bytes, blob: bytes, media_type: str = c.OCI_GZIP) -> Json:
    """The two layers, and a third one."""
    mine = [(it.layer(number), it.layers[number].diff_id) for number in (0, 1)]
    return of(it, *mine, (it.blob(blob, media_type), c.sha256(tar)))


def odd_names(it: Content) -> Json:
    """Names with `..` in them, of a file, a hard link, a whiteout and a directory."""
    link = named("usr/../l", tarfile.LNKTYPE, "../../a")
    tar = tar_of((named("../a"), b"a"), link, named("../usr/../etc/.wh.name"), named("nosuch/../d", tarfile.DIRTYPE))
    return above(it, tar, gzip.compress(tar))


def owned(it: Content, number: int) -> Json:
    """A file and a directory of an owner."""
    tree = [named("f"), named("d", tarfile.DIRTYPE)]
    for info in tree:
        info.uid = number
    tar = tar_of(*((info, b"") for info in tree))
    return above(it, tar, gzip.compress(tar))


def embedded(it: Content) -> Json:
    data = base64.b64encode(it.layers[1].blob).decode()
    return it.manifest(layers=[it.layer(0), it.layer(1, data=data)])


def upper(it: Content) -> Json:
    layers = [{name.upper(): value for name, value in layer.items()} for layer in both(it)]
    return it.document({"SchemaVersion": 2, "MediaType": c.OCI_MANIFEST, "Config": it.config(), "Layers": layers}, c.OCI_MANIFEST)


INDEXES = [
    Case("index", lambda it: it.index_of(on(elsewhere(it), ELSEWHERE), on(it.manifest()))),
    Case("index without a mediaType", lambda it: it.index_of(on(it.manifest()), mediaType=...)),
    Case("index inside an index", lambda it: nested(it, 1)),
    Case("index inside an index, with a platform", lambda it: it.index_of(on(it.index_of(on(it.manifest()))))),
    Case("index four deep", lambda it: nested(it, 3)),
    Case("index seven deep", lambda it: nested(it, 6), accepted=False),
    Case("second of two indexes", lambda it: it.index_of(it.index_of(on(elsewhere(it), ELSEWHERE)), it.index_of(on(it.manifest())))),
    Case("no platform, one entry", lambda it: it.index_of(it.manifest())),
    Case("no platform, an attestation", lambda it: it.index_of(it.manifest(), on(attestation(it), UNKNOWN))),
    Case("no platform, another with one", lambda it: it.index_of(on(elsewhere(it), ELSEWHERE), it.manifest())),
    Case("no platform, two, the first is ours", lambda it: it.index_of(it.manifest(), elsewhere(it))),
    Case("no platform, two, the second is ours", lambda it: it.index_of(elsewhere(it), it.manifest())),
    Case("no platform, an artifact first", lambda it: it.index_of(artifact(it), it.manifest())),
    Case("nested 9,000 deep", lambda it: it.document(json.dumps({"schemaVersion": 2, "manifests": [on(it.manifest())], "unknown": "QQ"}).encode().replace(b'"QQ"', DEEP), c.OCI_INDEX), slow=True),
    Case("platform without a word", lambda it: it.index_of(on(it.manifest(), {"architecture": "", "os": ""}))),
    Case("platform with nulls", lambda it: it.index_of(on(it.manifest(), HERE | {"variant": None, "os.features": None}))),
    Case("platform with a version", lambda it: it.index_of(on(it.manifest(), HERE | {"os.version": "1", "os.features": ["x"]}))),
    Case("platform of nobody here", lambda it: it.index_of(on(elsewhere(it), ELSEWHERE)), accepted=False),
    Case("an entry of another algorithm", lambda it: it.index_of(on(elsewhere(it), ELSEWHERE, digest="sha512:" + "a" * 128), on(it.manifest()))),
    Case("an entry whose document is missing", lambda it: it.index_of(on(elsewhere(it), ELSEWHERE, digest="sha256:" + "a" * 64), on(it.manifest()))),
    Case("artifact with our platform", lambda it: it.index_of(on(it.manifest()), on(artifact(it)))),
    Case("Docker's list", lambda it: it.index_of(on(docker(it)), media_type=c.LIST)),
    Case("Docker's list, no platform", lambda it: it.index_of(docker(it), media_type=c.LIST)),
    Case("Docker's list of OCI's manifests", lambda it: it.index_of(on(it.manifest()), media_type=c.LIST)),
    Case("OCI's index of Docker's manifests", lambda it: it.index_of(on(docker(it)))),
]  # fmt: skip
MANIFESTS = [
    Case("usual", lambda it: it.manifest()),
    Case("no mediaType", lambda it: carried(it, None, c.OCI_MANIFEST)),
    Case("no mediaType anywhere", lambda it: carried(it, None, "application/json")),
    Case("mediaType null", lambda it: text(it, b'"mediaType": "%s"' % c.OCI_MANIFEST.encode(), b'"mediaType": null')),
    Case("Docker's type in the document, OCI's outside", lambda it: carried(it, c.DOCKER_MANIFEST, c.OCI_MANIFEST)),
    Case("OCI's type in the document, Docker's outside", lambda it: carried(it, c.OCI_MANIFEST, c.DOCKER_MANIFEST)),
    Case("unknown type in the document", lambda it: carried(it, "application/json", c.OCI_MANIFEST)),
    Case("type with a charset", lambda it: carried(it, c.OCI_MANIFEST, c.OCI_MANIFEST + "; charset=utf-8")),
    Case("served as an index", lambda it: carried(it, c.OCI_MANIFEST, c.OCI_INDEX), accepted=False),
    Case("no schemaVersion", lambda it: it.manifest(schemaVersion=...)),
    Case("schemaVersion null", lambda it: it.manifest(schemaVersion=None)),
    Case("schemaVersion 1", lambda it: it.manifest(schemaVersion=1)),
    Case("Docker's schema 1", lambda it: it.document({"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": [{"blobSum": it.layer(0)["digest"]}], "history": [{"v1Compatibility": "{}"}]}, c.DOCKER + "distribution.manifest.v1+json"), accepted=False),
    Case("names in capitals", upper),
    Case("layers twice", lambda it: text(it, b"}]}", b'}], "layers": %s}' % json.dumps(both(it)).encode(), layers=[it.layer(0)])),
    Case("index and manifest at once", lambda it: it.manifest(manifests=[]), accepted=False),
    Case("manifests null", lambda it: it.manifest(manifests=None)),
    Case("annotations null", lambda it: it.manifest(annotations=None, subject=None, artifactType=None)),
    Case("annotation null", lambda it: it.manifest(annotations={"a": None})),
    Case("annotation a number", lambda it: it.manifest(annotations={"a": 1}), accepted=False),
    Case("byte order mark", lambda it: text(it, b'{"schemaV', b'\xef\xbb\xbf{"schemaV'), accepted=False),
    Case("line ends behind it", lambda it: text(it, b"}]}", b"}]}\r\n \t\n")),
    Case("not UTF-8", lambda it: text(it, b"QQ", b"\xe9\xff", annotations={"a": "QQ"})),
    Case("half a surrogate pair", lambda it: text(it, b"QQ", b"\\ud800", annotations={"a": "QQ"})),
    Case("numbers without end", lambda it: text(it, b'"QQ"', b"[1e400, %s]" % (b"9" * 5000), unknown="QQ")),
    Case("nested 9,000 deep", lambda it: text(it, b'"QQ"', DEEP, unknown="QQ"), slow=True),
    Case("nested 11,000 deep", lambda it: text(it, b'"QQ"', b"[" * 11_000 + b"]" * 11_000, unknown="QQ"), accepted=False, slow=True),
    Case("unknown fields", lambda it: it.manifest(unknown={"a": [1, None]}, artifactType=ARTIFACT)),
    Case("no layers", of, same=False),
    Case("no layers, no field", lambda it: text(it, b', "layers": []', b"", layers=[], config=it.config(rootfs={"type": "layers", "diff_ids": None})), same=False),
]  # fmt: skip
LAYERS = [
    Case("gzip called tar", lambda it: packed(it, c.OCI_TAR, gzip.compress), lazy=False),
    Case("gzip called zstd", lambda it: packed(it, c.OCI_ZSTD, gzip.compress), lazy=False),
    Case("zstd called gzip", lambda it: packed(it, c.OCI_GZIP, zstandard.compress), lazy=False),
    Case("zstd called Docker's tar", lambda it: packed(it, c.DOCKER_TAR, zstandard.compress), lazy=False),
    Case("zstd behind a skippable frame", lambda it: packed(it, c.OCI_ZSTD, lambda tar: SKIPPABLE + zstandard.compress(tar)), lazy=False),
    Case("tar called gzip", lambda it: packed(it, c.OCI_GZIP, bytes), lazy=False),
    Case("tar called zstd", lambda it: packed(it, c.OCI_ZSTD, bytes), lazy=False),
    Case("tar called tar", lambda it: packed(it, c.OCI_TAR, bytes), lazy=False),
    Case("the blobs called tars", lambda it: it.manifest(layers=both(it, c.OCI_TAR))),
    Case("the blobs called zstd", lambda it: it.manifest(layers=both(it, c.OCI_ZSTD))),
    Case("Docker's types", docker),
    Case("Docker's types in OCI's manifest", lambda it: it.manifest(layers=both(it, c.DOCKER_GZIP))),
    Case("OCI's types in Docker's manifest", lambda it: docker(it, layers=both(it))),
    Case("foreign, and here", lambda it: it.manifest(layers=both(it, c.OCI + "layer.nondistributable.v1.tar+gzip"))),
    Case("foreign, Docker's, and here", lambda it: docker(it, layers=both(it, c.DOCKER + "image.rootfs.foreign.diff.tar.gzip"))),
    Case("unknown type", lambda it: it.manifest(layers=both(it, "application/octet-stream")), accepted=False),
    Case("nulls", lambda it: it.manifest(layers=[layer | dict.fromkeys(["urls", "data", "platform", "artifactType"]) for layer in both(it)])),
    Case("null annotation", lambda it: it.manifest(layers=[layer | {"annotations": {**layer.get("annotations", {}), "a": None}} for layer in both(it)])),
    Case("TOC digests of nothing here", lambda it: it.manifest(layers=both(it, annotations={c.TOC_DIGEST: c.sha256(b"else")})), lazy=False),
    Case("TOC digests that are none", lambda it: it.manifest(layers=both(it, annotations={c.TOC_DIGEST: "yes"})), lazy=False),
    Case("data in the descriptor", embedded),
    Case("size missing", lambda it: it.manifest(layers=[it.layer(0), it.layer(1, size=...)]), accepted=False),
    Case("an empty tar", lambda it: above(it, bytes(1024), gzip.compress(bytes(1024))), lazy=False),
    Case("an empty gzip", lambda it: above(it, b"", gzip.compress(b"")), lazy=False),
    Case("no bytes", lambda it: above(it, b"", b"", c.OCI_TAR), lazy=False),
    Case("the same layer twice", lambda it: above(it, it.layers[1].tar, it.layers[1].blob), lazy=False),
    Case("names that climb", odd_names, same=False, lazy=False),
    Case("an owner of all ones", lambda it: owned(it, 2**32 - 1), same=False, lazy=False, slow=True),
    Case("an owner of 33 bits", lambda it: owned(it, 2**32 + 5), same=False, lazy=False, slow=True),
    Case("another diff ID", lambda it: above(it, b"else", gzip.compress(bytes(1024))), accepted=False, lazy=False),
]  # fmt: skip
CONFIGS = [
    Case("no config field", lambda it: it.manifest(config=it.config(config=...))),
    Case("nulls in it", lambda it: it.manifest(config=it.config(config=dict.fromkeys(["Env", "Cmd", "Entrypoint", "Labels", "User", "WorkingDir"]), history=None, created=None, author=None))),
    Case("null", lambda it: it.manifest(config=it.config(config=None))),
    Case("nested 9,000 deep", lambda it: config_text(it, b'"QQ"', DEEP, unknown="QQ")),
    Case("null in a list", lambda it: it.manifest(config=it.config(config={"Env": [None, "A=b"]}, history=[None]))),
    Case("null label and volume", lambda it: it.manifest(config=it.config(config={"Labels": {"a": None}, "Volumes": {"/a": None}}))),
    Case("no platform", lambda it: it.manifest(config=it.config(architecture=..., os=...))),
    Case("platform null", lambda it: it.manifest(config=it.config(architecture=None, os=None, variant=None))),
    Case("another platform", lambda it: it.manifest(config=it.config(**ELSEWHERE))),
    Case("rootfs without a type", lambda it: it.manifest(config=it.config(rootfs={"diff_ids": [layer.diff_id for layer in it.layers]}))),
    Case("rootfs of another type", lambda it: it.manifest(config=it.config(rootfs={"type": "x", "diff_ids": [layer.diff_id for layer in it.layers]}))),
    Case("RootFS", lambda it: it.manifest(config=it.config(rootfs=..., RootFS={"Type": "layers", "Diff_IDs": [layer.diff_id for layer in it.layers]}))),
    Case("short history", lambda it: it.manifest(config=it.config(history=[{"created_by": "x"}]))),
    Case("long history", lambda it: it.manifest(config=it.config(history=[{"created_by": "x"}] * 9))),
    Case("not UTF-8 in it", lambda it: config_text(it, b"QQ", b"Ren\xe9", author="QQ")),
    Case("line end behind it", lambda it: config_text(it, b'"]}}', b'"]}}\n')),
    Case("unusual media type", lambda it: it.manifest(config=it.config(media_type="application/vnd.example.config+json"))),
    Case("no media type", lambda it: it.manifest(config={name: value for name, value in it.config().items() if name != "mediaType"})),
    Case("Docker's in OCI's manifest", lambda it: it.manifest(config=it.config(media_type=c.DOCKER_CONFIG))),
    Case("large label", lambda it: it.manifest(config=it.config(config={"Labels": {"a": "x" * (1 << 20)}}))),
    Case("fewer diff IDs", lambda it: it.manifest(config=it.config(rootfs={"type": "layers", "diff_ids": [it.layers[0].diff_id]})), accepted=False),
]  # fmt: skip
TABLE = [
    case._replace(name=f"{kind}: {case.name}")
    for kind, cases in (("index", INDEXES), ("manifest", MANIFESTS), ("layer", LAYERS), ("config", CONFIGS))
    for case in cases
]
