"""An image whose documents a test writes byte by byte: kept in memory, served by a registry, or written as an OCI layout."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from lazyfs.format.platform import this_platform
from tests.bad.oci import tar_of

Json = dict[str, Any]

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
OCI_INDEX = OCI + "index.v1+json"
OCI_MANIFEST = OCI + "manifest.v1+json"
OCI_CONFIG = OCI + "config.v1+json"
OCI_TAR = OCI + "layer.v1.tar"
OCI_GZIP = OCI_TAR + "+gzip"
OCI_ZSTD = OCI_TAR + "+zstd"
LIST = DOCKER + "distribution.manifest.list.v2+json"
DOCKER_MANIFEST = DOCKER + "distribution.manifest.v2+json"
DOCKER_CONFIG = DOCKER + "container.image.v1+json"
DOCKER_TAR = DOCKER + "image.rootfs.diff.tar"
DOCKER_GZIP = DOCKER_TAR + ".gzip"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
REF_NAME = "org.opencontainers.image.ref.name"
_MACHINE = this_platform().architecture
HERE = {"architecture": _MACHINE, "os": "linux"}
ELSEWHERE = {"architecture": "s390x" if _MACHINE != "s390x" else "ppc64le", "os": "linux"}


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layer(NamedTuple):
    """A layer as it is before a test does something to it."""

    blob: bytes
    tar: bytes
    diff_id: str
    annotations: dict[str, str]


class Content:
    """What one repository holds. `top` is the digest that the tag means."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        """The layers of the image that a case makes its documents for."""
        self.documents: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.top = ""
        self.index: bytes | None = None
        """index.json of the layout, where it is not the usual one."""

    def blob(self, data: bytes, media_type: str, /, **fields: Any) -> Json:
        """Hold a blob; its descriptor, with other or further fields."""
        self.blobs[sha256(data)] = data
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data)} | fields

    def document(self, value: object, media_type: str, /, **fields: Any) -> Json:
        """Hold a manifest or index, which `top` means from now on; its descriptor."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.top = sha256(data)
        self.documents[self.top] = (media_type, data)
        return {"mediaType": media_type, "digest": self.top, "size": len(data)} | fields

    def layer(self, number: int, media_type: str | None = OCI_GZIP, /, **fields: Any) -> Json:
        """The descriptor of a layer of the image."""
        layer = self.layers[number]
        more = {"annotations": layer.annotations} if layer.annotations else {}
        return without(self.blob(layer.blob, media_type, **(more | fields)))

    def config(self, *, media_type: str = OCI_CONFIG, **changes: Any) -> Json:
        """The descriptor of the image's config; fields that are ... are left out."""
        body = HERE | {"config": {}, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]}}
        return self.blob(json.dumps(without(body | changes)).encode(), media_type)

    def manifest(self, *, layers: list[Json] | None = None, config: Json | None = None, **changes: Any) -> Json:
        """The descriptor of the image's manifest; fields that are ... are left out."""
        listed = layers if layers is not None else [self.layer(number) for number in range(len(self.layers))]
        body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config or self.config(), "layers": listed}
        body |= changes
        kind = body["mediaType"] if isinstance(body["mediaType"], str) else OCI_MANIFEST
        return self.document(without(body), kind)

    def index_of(self, *entries: Json, media_type: str = OCI_INDEX, **changes: Any) -> Json:
        """The descriptor of an index; fields that are ... are left out."""
        body = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)} | changes
        return self.document(without(body), media_type)

    def write(self, folder: Path) -> Path:
        """As an OCI layout, tagged `v1`."""
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for digest, data in self.blobs.items():
            (blobs / digest[7:]).write_bytes(data)
        for digest, (_, data) in self.documents.items():
            (blobs / digest[7:]).write_bytes(data)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        media_type, data = self.documents[self.top]
        entry = {"mediaType": media_type, "digest": self.top, "size": len(data), "annotations": {REF_NAME: "v1"}}
        index = self.index or json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        (folder / "index.json").write_bytes(index)
        return folder


def without(body: Json) -> Json:
    return {name: value for name, value in body.items() if value is not ...}


def plain_layer(*members: Any) -> Layer:
    """A gzip layer of tar members."""
    tar = tar_of(*members)
    return Layer(gzip.compress(tar, mtime=0), tar, sha256(tar), {})


class Served:
    """A registry for any number of contents, by repository."""

    def __init__(self) -> None:
        self.contents: dict[str, Content] = {}
        self.host = ""

    def __getitem__(self, repository: str) -> Content:
        return self.contents[repository]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away in the middle is none of ours."""


@contextmanager
def serving() -> Iterator[Served]:
    """A registry on loopback, plain HTTP."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            found = re.fullmatch(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/?]+)(\?.*)?", self.path)
            if self.path.rstrip("/") == "/v2":
                return self._send(200, "application/json", b"{}", {}, body)
            content = served.contents.get(found["name"]) if found else None
            if content is None or not found:
                return self._send(404, "application/json", b"{}", {}, body)
            reference = content.top if found["reference"] == "v1" else found["reference"]
            if found["kind"] == "manifests" and reference in content.documents:
                kind, data = content.documents[reference]
                return self._send(200, kind, data, {"Docker-Content-Digest": reference}, body)
            if found["kind"] == "blobs" and reference in content.blobs:
                return self._blob(content.blobs[reference], body)
            return self._send(404, "application/json", b"{}", {}, body)

        def _blob(self, data: bytes, body: bool) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not wanted or int(wanted[1]) >= len(data):
                return self._send(200, "application/octet-stream", data, {}, body)
            start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            fields = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            return self._send(206, "application/octet-stream", data[start : end + 1], fields, body)

        def _send(self, status: int, kind: str, data: bytes, fields: dict[str, str], body: bool) -> None:
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.host = f"127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
