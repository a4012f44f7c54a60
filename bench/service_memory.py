"""The memory of lazyfsd as a service, while ten different images are mounted.

Each is pulled into a name space of its own, and mounted for a container that could start. All but busybox stand on the same Debian, as most images of
one house do: containerd shares lazy layers between name spaces, and lazyfsd has one index of each.
"""

from __future__ import annotations

import time

from bench.figure import Bar, Figure
from bench.place import Place
from bench.processes import resident
from bench.snapshotters import OURS, containerd, lazyfsd
from tests.containerd import Containerd
from tests.processes import tree

IMAGES = ("busybox", "debian", "edge", "gcc", "nginx", "node", "openjdk", "python", "redis", "scipy")
SETTLED = 1.0
"""Seconds after which lazyfsd has given back what it took for the pulls."""


def measure(place: Place) -> list[Figure]:
    """Megabytes. Where systemd starts it again, it has no keeper."""
    references = {image: place.lazy(image) for image in IMAGES}
    with lazyfsd(place) as daemon, containerd(place, **{OURS: daemon.socket}) as running:
        (pid,) = set(tree(daemon.keeper)) - {daemon.keeper}
        alone, keeper = resident(pid), resident(daemon.keeper)
        layers = 0
        for image, reference in references.items():
            place.say(f"{image}: pulled and mounted")
            layers += _mount(running, image, reference.removeprefix("docker://"))
        mounted = resident(pid)
        place.say("until all of them is here")
        daemon.wait_until_pulled(uses=layers)
        time.sleep(SETTLED)
        there, peak = resident(pid), resident(pid, "VmHWM")

    def figure(what: str, size: int, bar: Bar | None = None) -> Figure:
        return Figure(what, "MB", (size / 1e6,), bar)

    images = f"{len(IMAGES)} images mounted"
    return [
        figure("nothing mounted", alone),
        figure(images, mounted, Bar("<=", 150)),
        figure(f"{images}, and all of them here", there, Bar("<=", 150)),
        figure(f"{images}, peak while that came", peak),
        figure("its keeper, on top", keeper),
    ]


def _mount(running: Containerd, namespace: str, name: str) -> int:
    """How many layers it has."""
    options = ("--namespace", namespace)
    running.ctr(*options, "images", "rpull", "--plain-http", f"--snapshotter={OURS}", name, program="ctr-remote")
    lines = running.ctr(*options, "snapshots", "--snapshotter", OURS, "list").stdout.decode().splitlines()[1:]
    chain = [line.split() for line in lines]
    parents = {fields[1] for fields in chain if len(fields) == 3}
    (top,) = {fields[0] for fields in chain} - parents
    running.ctr(*options, "snapshots", "--snapshotter", OURS, "prepare", "looked-at", top)
    return len(chain)
