"""What a chunk costs, in a small file and in a large one: the processor time of the process that serves the mount, a chunk read.

Files in chunks of 64 KiB, which do not compress. Read in order from the registry, and again in a new mount with all here. What a mount
costs before the first read is not counted; what it does once a file is, and weighs on the small one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figure import Bar, Baseline, Figure
from bench.libraries import make_image
from bench.place import Place
from bench.processes import processor_time

SIZES = (20_000_000, 2_000_000_000)
"""Bytes of the small file, and of the large one."""
CHUNK = 64 << 10
FEW_ROUNDS = 3
WAYS = ("portable", "native")
_STEP = 1 << 20


def measure(place: Place, sizes: Sequence[int] = SIZES, rounds: int = FEW_ROUNDS) -> list[Figure]:
    """Microseconds a chunk of the large file, beside one of the small file."""
    images = [_image(place, size) for size in sizes]
    found: dict[tuple[str, str, int], list[float]] = {}
    for number in range(rounds):
        place.say(f"chunks: round {number + 1} of {rounds}")
        for way in WAYS:
            for size, image in zip(sizes, images, strict=True):
                place.clear_store()
                for state in ("cold", "all here"):
                    cost = _read(place, image, way, size)
                    if state == "cold" or way == "portable":  # the kernel alone reads what is here natively
                        found.setdefault((way, state, size), []).append(cost)
    small, large = sizes
    return [
        Figure(
            f"{way}, {state}: a chunk of {large / 1e6:.0f} MB",
            "µs",
            tuple(found[way, state, large]),
            Bar("<=", 1.5, "ratio"),
            Baseline(f"of {small / 1e6:.0f} MB", tuple(found[way, state, small])),
        )
        for way, state in (("portable", "cold"), ("portable", "all here"), ("native", "cold"))
    ]


def _image(place: Place, size: int) -> str:
    path = place.folder / "noise"
    with path.open("wb") as file:
        for at in range(0, size, _STEP):
            file.write(os.urandom(min(_STEP, size - at)))
    name = f"chunks-{size}"
    image = f"docker://{place.registry.address}/lazy/{name}:v1"
    place.convert(make_image(place.folder, name, lambda tar: tar.add(path, "file")), image, "--chunk-size", f"{CHUNK >> 10}K")
    path.unlink()
    return image


def _read(place: Place, image: str, way: str, size: int) -> float:
    """Microseconds a chunk."""
    with place.lazyfs.mounted(image, "--background", "off", mode=way) as root:
        pid = place.lazyfs.json("status", root)["pid"]
        before = processor_time(pid)
        place.seconds("dd", f"if={root / 'file'}", "of=/dev/null", "bs=1M", "status=none")
        cost = processor_time(pid) - before
    _wait_for_end(pid)
    return cost * 1e6 / -(-size // CHUNK)


def _wait_for_end(pid: int) -> None:
    """Of what served the mount: lazyfsd ends after its last mount, and its store may go then."""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
