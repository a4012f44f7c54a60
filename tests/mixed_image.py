"""Images of which some layers are lazy and some are not: layers of a converted image, and of what it was converted from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bad.oci import CONFIG, MANIFEST, TAG, sha256


def mix(original: str, converted: str, lazy: Sequence[bool], target: Path) -> str:
    """In the layout `target` (both others' blobs are linked there): layer N of `converted` where `lazy[N]`, else of `original`.

    All three are layouts in `oci:DIR:TAG` notation; that of the new image is returned.
    """
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    sides = [_Side(original), _Side(converted)]
    layers, diff_ids = [], []
    assert len(lazy) == len(sides[0].manifest["layers"]) == len(sides[1].manifest["layers"])
    for number, is_lazy in enumerate(lazy):
        side = sides[is_lazy]
        layer = side.manifest["layers"][number]
        name = layer["digest"].removeprefix("sha256:")
        (blobs / name).write_bytes((side.blobs / name).read_bytes())
        layers.append(layer)
        diff_ids.append(side.config["rootfs"]["diff_ids"][number])
    config = {**sides[0].config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}

    def add(value: object, kind: str) -> dict[str, object]:
        data = json.dumps(value).encode()
        (blobs / sha256(data)[7:]).write_bytes(data)
        return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": add(config, CONFIG), "layers": layers}
    entry = {**add(manifest, MANIFEST), "annotations": {TAG: "v1"}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{target}:v1"


class _Side:
    """One layout's image."""

    def __init__(self, notation: str) -> None:
        folder, _, tag = notation.removeprefix("oci:").partition(":")
        self.blobs = Path(folder) / "blobs" / "sha256"
        index = json.loads((Path(folder) / "index.json").read_text())["manifests"]
        chosen = next(entry for entry in index if entry.get("annotations", {}).get(TAG) == tag)
        self.manifest = self._read(chosen["digest"])
        self.config = self._read(self.manifest["config"]["digest"])

    def _read(self, digest: str) -> dict[str, Any]:
        return json.loads((self.blobs / digest.removeprefix("sha256:")).read_bytes())
