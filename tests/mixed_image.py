"""Images of which some layers are lazy and some are not: layers of a converted image, and of what it was converted from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bad.oci import CONFIG, MANIFEST, TAG, sha256


def mix(original: str, converted: str, lazy: Sequence[bool], target: Path, user: str = "") -> str:
    """In the layout `target`: layer N of `converted` where `lazy[N]`, else of `original`; its containers run as `user`.

    All three are layouts in `oci:DIR:TAG` notation; that of the new image is returned.
    """
    sides = [_Side(original), _Side(converted)]
    assert len(lazy) == len(sides[0].layers) == len(sides[1].layers)
    config = sides[0].config
    settings = {**config.get("config", {}), "User": user}
    return _write({**config, "config": settings}, [sides[is_lazy].layers[number] for number, is_lazy in enumerate(lazy)], target)


def join(images: Sequence[str], target: Path) -> str:
    """In the layout `target`: the layers of all `images`, those of the first the lowest; its config. Notation as in `mix`."""
    sides = list(map(_Side, images))
    return _write(sides[0].config, [layer for side in sides for layer in side.layers], target)


class _Layer(NamedTuple):
    descriptor: dict[str, Any]
    diff_id: str
    blob: Path


def _write(config: dict[str, Any], layers: Sequence[_Layer], target: Path) -> str:
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for layer in layers:
        (blobs / layer.blob.name).write_bytes(layer.blob.read_bytes())

    def add(value: object, kind: str) -> dict[str, object]:
        data = json.dumps(value).encode()
        (blobs / sha256(data)[7:]).write_bytes(data)
        return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

    whole = {**config, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}}
    whole.pop("history", None)
    described = [layer.descriptor for layer in layers]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": add(whole, CONFIG), "layers": described}
    entry = {**add(manifest, MANIFEST), "annotations": {TAG: "v1"}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{target}:v1"


class _Side:
    """One layout's image."""

    def __init__(self, notation: str) -> None:
        folder, _, tag = notation.removeprefix("oci:").partition(":")
        self._blobs = Path(folder) / "blobs" / "sha256"
        index = json.loads((Path(folder) / "index.json").read_text())["manifests"]
        chosen = next(entry for entry in index if entry.get("annotations", {}).get(TAG) == tag)
        manifest = self._read(chosen["digest"])
        self.config = self._read(manifest["config"]["digest"])
        self.layers = [
            _Layer(descriptor, diff_id, self._blobs / descriptor["digest"].removeprefix("sha256:"))
            for descriptor, diff_id in zip(manifest["layers"], self.config["rootfs"]["diff_ids"], strict=True)
        ]

    def _read(self, digest: str) -> Any:
        return json.loads((self._blobs / digest.removeprefix("sha256:")).read_bytes())
