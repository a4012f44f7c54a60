"""A directory as a lazy layer: converted, served by a registry, and named as containerd names it to a snapshotter."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.cli.main import main
from lazyfs.snapshots.labels import TARGET
from tests.bad.oci import Oci
from tests.lying_registry import LyingRegistry


@contextmanager
def served(root: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The labels with which CRI asks for the tree at `root` as one lazy layer; inside the block there is a registry that has it."""
    with LyingRegistry(_convert(root, folder)) as registry:
        yield labels_of(folder / "converted", registry.server.host)


def labels_of(layout: Path, host: str) -> dict[str, str]:
    """The labels of the lowest layer of the image `v1` in a layout, which the registry `host` serves as `image`."""
    blobs = layout / "blobs" / "sha256"
    manifest_digest = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    manifest = json.loads((blobs / manifest_digest[7:]).read_bytes())
    layer = manifest["layers"][0]
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    passed = {key: value for key, value in layer["annotations"].items() if key.startswith("containerd.io/snapshot/")}
    return passed | {
        TARGET: config["rootfs"]["diff_ids"][0],
        "containerd.io/snapshot/cri.image-ref": f"{host}/image:v1",
        "containerd.io/snapshot/cri.manifest-digest": manifest_digest,
        "containerd.io/snapshot/cri.layer-digest": layer["digest"],
        "containerd.io/snapshot/cri.image-layers": ",".join(each["digest"] for each in manifest["layers"]),
    }


def _convert(root: Path, folder: Path) -> Path:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(root, arcname=".")
    original, layout = Oci(folder / "original"), folder / "converted"
    original.image(original.plain(data.getvalue()))
    assert main(["convert", f"oci:{original.path}:v1", f"oci:{layout}:v1"]) == 0
    return layout
