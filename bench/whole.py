"""A container that reads the whole image, from nothing: mounted natively, and after a full pull onto overlayfs."""

from __future__ import annotations

import time

from bench.container import Container, build_reader
from bench.figure import Bar, Baseline, Figure
from bench.place import Place
from bench.roots import lazy_root, pulled_root
from tests.containerd import Containerd

IMAGE = "scipy"
ROUNDS = 3


def measure(place: Place) -> list[Figure]:
    """Seconds from the command that mounts, or pulls, to the last byte that one reader in the container has read."""
    image, original = place.lazy(IMAGE), place.original(IMAGE)
    tools = build_reader(place.new_folder() / "tools")
    ours, theirs, pulls = list[float](), list[float](), list[float]()
    with Containerd(place.new_folder() / "c") as containerd:
        for number in range(ROUNDS):
            place.say(f"whole {IMAGE}: round {number + 1} of {ROUNDS}")
            place.new_store()
            start = time.perf_counter()
            with lazy_root(place, image) as bundle, Container(bundle, tools) as container:
                container.order("walk")
                container.read()
                ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            namespace = f"round-{number}"  # shares nothing, so that every pull is a first one
            pulled = containerd.pull(original, namespace=namespace)
            pulls.append(time.perf_counter() - start)
            with pulled_root(place, containerd, pulled, namespace=namespace) as bundle, Container(bundle, tools) as container:
                container.order("walk")
                container.read()
                theirs.append(time.perf_counter() - start)
    read = Baseline("full pull and read", tuple(theirs))
    return [
        Figure(f"{IMAGE}, mounted and read", "s", tuple(ours), Bar("<=", 1, "ratio"), read),
        Figure(f"{IMAGE}, full pull alone", "s", tuple(pulls)),
    ]
