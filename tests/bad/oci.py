"""A small OCI layout whose every byte is the test's to choose: sound by default, and wrong where it is told to be."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from lazyfs.format.footer import build_footer
from lazyfs.format.member import compress_member

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
TAG = "org.opencontainers.image.ref.name"

DATA = b"what the file holds\n" * 100
MEMBER = compress_member(DATA + b"padding, and the next header")
"""What `file()` says of itself is true of this."""

Json = dict[str, Any]


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file(name: str = "file", **changes: Any) -> Json:
    """The TOC entry of a file whose one chunk is DATA, in a member at offset 0."""
    entry = {"name": name, "type": "reg", "size": len(DATA), "mode": 0o644, "offset": 0, "digest": sha256(DATA)}
    return entry | {"chunkDigest": sha256(DATA)} | changes


def chunk(offset: int, **changes: Any) -> Json:
    """The TOC entry of a further chunk, at `offset` of its file."""
    return {"name": "file", "type": "chunk", "chunkOffset": offset, "offset": 0, "chunkDigest": sha256(DATA)} | changes


def tar_of(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar of members without data, or with."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A tar header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def toc_tar(toc: bytes, name: str = "stargz.index.json") -> bytes:
    """The tar that a TOC's member inflates to."""
    return tar_of((named(name), toc))


class Oci:
    """The layout in `path`; made whole by `image`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        """For several images that are alike: what their layers differ in (hostile.py)."""
        self.layer = ""
        """The digest of the image's last layer."""
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def blob(self, data: bytes, media_type: str, **fields: Any) -> Json:
        """Keep a blob; its descriptor, with further or other `fields`."""
        digest = sha256(data)
        self.blob_path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)} | fields

    def document(self, value: object, media_type: str, **fields: Any) -> Json:
        """Keep JSON."""
        return self.blob(json.dumps(value).encode(), media_type, **fields)

    def lazy(
        self,
        toc: object,
        members: bytes = MEMBER,
        *,
        toc_member: bytes = b"",
        footer: bytes = b"",
        toc_digest: str = "",
        **fields: Any,
    ) -> Json:
        """The descriptor of an eStargz layer; `toc` is its JSON or its entries."""
        data = toc if isinstance(toc, bytes) else json.dumps({"version": 1, "entries": toc}).encode()
        member = toc_member or compress_member(toc_tar(data))
        blob = members + member + (footer or build_footer(len(members)))
        return self.blob(blob, GZIP_LAYER, annotations={TOC_DIGEST: toc_digest or sha256(data)}, **fields)

    def plain(self, tar: bytes, media_type: str = GZIP_LAYER, **fields: Any) -> Json:
        """The descriptor of an ordinary layer; `diff_id` goes into the config."""
        return self.blob(gzip.compress(tar, mtime=0), media_type, **{"diff_id": sha256(tar), **fields})

    def config(self, layers: list[Json], **changes: Any) -> Json:
        """The config of an image of `layers`."""
        diff_ids = [layer.get("diff_id") or sha256(str(number).encode()) for number, layer in enumerate(layers)]
        fields = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        return self.document(fields | changes, CONFIG)

    def image(self, *layers: Json, config: Json | None = None, **changes: Any) -> Json:
        """The image `v1`: its manifest with other or further fields. The manifest's descriptor."""
        self.layer = str(layers[-1].get("digest", "")) if layers else ""
        listed = [{key: value for key, value in layer.items() if key != "diff_id"} for layer in layers]
        head = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config or self.config(list(layers)), "layers": listed}
        return self.tag(self.document(head | changes, str((head | changes)["mediaType"])))

    def tag(self, descriptor: Json) -> Json:
        """Point `v1` to a document."""
        entry = descriptor | {"annotations": {TAG: "v1"}}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        (self.path / "index.json").write_text(json.dumps(index))
        return descriptor
