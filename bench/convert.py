"""Converting an image: how fast beside Debian's own converter of the same format, how large, in how much memory.

Both start from blobs on this machine and leave blobs on this machine: `ctr-remote` in containerd's content store, we in OCI
layouts. The way from registry to registry, which a user goes, is measured beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.figure import Bar, Baseline, Figure
from bench.libraries import libraries, make_image, write_file
from bench.place import LAZYFS, ROUNDS, Place
from bench.processes import peak
from tests.containerd import Containerd
from tests.images.layout import Layout

IMAGE = "python"
LARGE = 2_000_000_000


def measure(place: Place) -> list[Figure]:
    """Speed, size and memory."""
    return [*_speed(place), _memory(place)]


def _speed(place: Place) -> list[Figure]:
    built, original = place.built(IMAGE), place.original(IMAGE)
    size = _layers(built)
    target, name = place.folder / "converted", f"{place.registry.address}/peer/{IMAGE}:v1"
    ours, theirs, over = [], [], []
    with Containerd(place.folder / "c") as containerd:
        pulled = original.removeprefix("docker://")
        containerd.ctr("content", "fetch", "--plain-http", pulled)
        peer = (
            "ctr-remote",
            "--address",
            containerd.folder / "socket",
            "images",
            "optimize",
            "--oci",
            "--no-optimize",
            pulled,
            name,
        )
        for number in range(ROUNDS):
            place.say(f"convert {IMAGE}: round {number + 1} of {ROUNDS}")
            shutil.rmtree(target, ignore_errors=True)
            ours.append(size / 1e6 / place.seconds(LAZYFS, "convert", built, f"oci:{target}:v1"))
            theirs.append(size / 1e6 / place.seconds(*peer))
            containerd.ctr("images", "rm", "--sync", name)
            over.append(
                size / 1e6 / place.seconds(LAZYFS, "convert", original, f"docker://{place.registry.address}/r{number}:v1")
            )
    baseline = Baseline("ctr-remote", tuple(theirs))
    grown = Baseline("original layers", (size / 1e6,))
    return [
        Figure(f"{IMAGE}, local", "MB/s", tuple(ours), Bar(">=", 5, "ratio"), baseline),
        Figure(f"{IMAGE}, registry to registry", "MB/s", tuple(over), None, baseline),
        Figure(f"{IMAGE}, layers", "MB", (_layers(f"oci:{target}:v1") / 1e6,), Bar("<=", 1.05, "ratio"), grown),
    ]


def _memory(place: Place) -> Figure:
    place.say(f"convert: one file of {LARGE / 1e9:g} GB")
    source = write_file(place.folder / "large", (data for _ in range(100) for data in libraries(place, "scipy")), LARGE)
    made = make_image(place.folder, "large", lambda tar: tar.add(source, "large"))
    source.unlink()
    target = place.folder / "converted"
    shutil.rmtree(target, ignore_errors=True)
    used = peak(LAZYFS, "convert", made, f"oci:{target}:v1", environment=place.environment)
    shutil.rmtree(target)
    shutil.rmtree(made.split(":")[1])
    return Figure(f"a file of {LARGE / 1e9:g} GB, memory of all processes", "MB", (used / 1e6,), Bar("<=", 300))


def _layers(reference: str) -> int:
    _, path, tag = reference.split(":")
    layout = Layout(Path(path))
    digest = layout.manifest_of(tag)
    assert digest is not None
    return sum(layer["size"] for layer in json.loads(layout.blob(digest).read_bytes())["layers"])
