"""A crowd of readers that miss files, and a registry that is 20 ms away."""

from __future__ import annotations

import os
import random
from pathlib import Path

from bench.container import TOOLS, Container, build_reader, root_of
from bench.figure import Bar, Baseline, Figure
from bench.fuse_requests import counting
from bench.late_registry import LateRegistry
from bench.place import Place
from bench.roots import lazy_root

IMAGE = "python"
ROUNDS = 5
FILES = 1280
READERS = 64
LATE = 0.02
"""Seconds by which each answer of the registry is late."""
LARGE = 4 << 20


def measure(place: Place) -> list[Figure]:
    """Seconds for all of them; with files that stand together, which arrive together, and with files that do not."""
    tools = build_reader(place.new_folder() / "tools")
    layout = place.new_folder() / "oci"
    place.convert(place.built(IMAGE), f"oci:{layout}:v1")
    figures = []
    for strewn in (False, True):
        seconds: dict[float, list[float]] = {LATE: [], 0.0: []}
        ranges, lookups = list[float](), list[float]()
        what = f"{READERS} readers miss {FILES} files, {'strewn' if strewn else 'in order'}"
        for number in range(ROUNDS):
            place.say(f"{what}: round {number + 1} of {ROUNDS}")
            for delay, taken in seconds.items():
                place.new_store()
                with (
                    LateRegistry(layout, delay) as registry,
                    lazy_root(place, f"docker://{registry.address}/late:v1", "--background", "off") as bundle,
                    counting(place.lazyfs.store / "gate", place.folder) as requests,
                    Container(bundle, tools) as container,
                ):
                    chosen = _choose(root_of(bundle), strewn=strewn)
                    (tools / "list").write_bytes(b"\n".join(chosen) + b"\n")
                    container.order("list", f"{TOOLS}/list")
                    requests.take()
                    before = registry.ranges
                    taken.append(container.order("crowd", READERS).seconds)
                    if delay:
                        lookups.append(requests.take()["LOOKUP"])
                        ranges.append(registry.ranges - before)
        at_hand = Baseline("registry at hand", tuple(seconds[0.0]))
        figures += [
            Figure(f"{what}, {LATE * 1e3:.0f} ms late", "s", tuple(seconds[LATE]), Bar("<=", 1.5), at_hand),
            Figure(f"{what}, ranges", "requests", tuple(ranges), None, Baseline("lookups", tuple(lookups))),
        ]
    return figures


def _choose(root: Path, *, strewn: bool) -> list[bytes]:
    """Files of one chunk: the first ones, or some out of the whole image."""
    found = []
    for folder, folders, names in os.walk(os.fsencode(root)):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path) and 0 < os.path.getsize(path) <= LARGE:
                found.append(path.removeprefix(os.fsencode(root)))
    return random.Random(4).sample(found, FILES) if strewn else found[:FILES]
