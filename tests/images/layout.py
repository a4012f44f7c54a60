"""One OCI layout: blobs by digest, tags in index.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.images.layer import Blob, LayerFile

REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CREATED = "2026-01-01T00:00:00Z"


class Layout:
    """A layout directory; created where it is none yet. Writers must hold a lock of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        marker = path / "oci-layout"
        if not marker.exists():
            self._replace(path / "index.json", {"schemaVersion": 2, "manifests": []})
            self._replace(marker, {"imageLayoutVersion": "1.0.0"})

    def blob(self, digest: str) -> Path:
        """Where a blob lies, whether or not it does."""
        return self.blobs / digest.removeprefix("sha256:")

    def add(self, data: bytes) -> dict[str, Any]:
        """Keep a small blob. Its digest and size, as a descriptor has them."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blob(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def add_layer(self, write: Callable[[LayerFile], None]) -> Blob:
        """Keep the tar that `write` writes, gzipped."""
        temporary = self.blobs / f".{os.getpid()}"
        with temporary.open("wb") as file:
            layer = LayerFile(file)
            write(layer)
            blob = layer.finish()
        temporary.rename(self.blob(blob.digest))
        return blob

    def manifest_of(self, tag: str) -> str | None:
        """The digest of the manifest under a tag."""
        for entry in json.loads((self.path / "index.json").read_text())["manifests"]:
            if entry["annotations"].get(REF_NAME) == tag:
                return str(entry["digest"])
        return None

    def add_image(self, tag: str, layers: list[tuple[Blob, str]], config: dict[str, Any]) -> str:
        """Keep config and manifest of an image of `layers`, each with the words of its history. The manifest's digest."""
        described = self.add(
            json.dumps(
                {
                    "created": CREATED,
                    "architecture": "amd64",
                    "os": "linux",
                    "config": config,
                    "rootfs": {"type": "layers", "diff_ids": [blob.diff_id for blob, _ in layers]},
                    "history": [{"created": CREATED, "created_by": words} for _, words in layers],
                }
            ).encode()
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **described},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": blob.digest, "size": blob.size}
                for blob, _ in layers
            ],
        }
        entry = {"mediaType": MANIFEST_TYPE, **self.add(json.dumps(manifest).encode()), "annotations": {REF_NAME: tag}}
        index = json.loads((self.path / "index.json").read_text())
        index["manifests"] = [old for old in index["manifests"] if old["annotations"].get(REF_NAME) != tag] + [entry]
        self._replace(self.path / "index.json", index)
        return str(entry["digest"])

    def _replace(self, path: Path, value: object) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(value, indent=1))
        temporary.rename(path)
