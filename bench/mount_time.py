"""The time until a mount answers, and what a first program fetches.

From the exec of `lazyfs mount`, background and all at its defaults, to the end of `ls` of the mounted root: with an empty
store, and again with the TOCs here. Beside it what a full pull onto overlayfs takes.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.figure import Bar, Baseline, Figure
from bench.place import LAZYFS, ROUNDS, Place
from tests.containerd import Containerd

WARM_UP = 1
BARS = {"python": (0.7, 0.5), "scipy": (1.2, None)}
"""Seconds: with an empty store, and again."""
HELLO = ("python3", "-c", 'print("hello")')


def measure(place: Place) -> list[Figure]:
    """Mount times, and the share of the layers that a hello fetches."""
    return [*(figure for name in BARS for figure in _times(place, name)), _hello(place)]


def _times(place: Place, name: str) -> list[Figure]:
    image, root = place.lazy(name), place.folder / "root"
    root.mkdir(exist_ok=True)
    first, again, pulls = [], [], []
    with Containerd(place.folder / "c") as containerd:
        for number in range(WARM_UP + ROUNDS):
            place.say(f"mount {name}: round {number + 1} of {WARM_UP + ROUNDS}")
            place.clear_store()
            first.append(_mount_and_list(place, image, root))
            again.append(_mount_and_list(place, image, root))
            start = time.perf_counter()
            pulled = containerd.pull(place.original(name))
            pulls.append(time.perf_counter() - start)
            containerd.ctr("images", "rm", "--sync", pulled)
    pull = Baseline("full pull", tuple(pulls[WARM_UP:]))
    bars = [None if limit is None else Bar("<=", limit) for limit in BARS[name]]
    return [
        Figure(f"{name}, empty store", "s", tuple(first[WARM_UP:]), bars[0], pull),
        Figure(f"{name}, again", "s", tuple(again[WARM_UP:]), bars[1], pull),
    ]


def _mount_and_list(place: Place, image: str, root: Path) -> float:
    start = time.perf_counter()
    place.seconds(LAZYFS, "mount", image, root, "--store", place.lazyfs.store, "--mode", "portable")
    place.seconds("ls", root)
    taken = time.perf_counter() - start
    place.lazyfs.run("umount", root)
    return taken


def _hello(place: Place) -> Figure:
    place.clear_store()
    before = len(place.registry.requests())
    with place.lazyfs.mounted(place.lazy("python"), "--background", "off") as root:
        place.seconds("chroot", root, *HELLO)
        whole = place.lazyfs.json("status", root)["layer_bytes"]
    fetched = sum(request.size for request in place.registry.blob_requests(before))
    return Figure("python, hello, fetched", "MB", (fetched / 1e6,), Bar("<=", 0.1, "ratio"), Baseline("layers", (whole / 1e6,)))
