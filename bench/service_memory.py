"""The memory of lazyfsd as a service, while ten different images are mounted.

Each is pulled into a name space of its own, and mounted for a container that could start. All but busybox stand on the same Debian, as most images of
one house do: containerd shares lazy layers between name spaces, and lazyfsd has one index of each.
"""

from __future__ import annotations

from bench.figure import Bar, Figure
from bench.place import Place
from bench.processes import resident, tree
from bench.snapshotters import OURS, containerd, lazyfsd
from tests.containerd import Containerd

IMAGES = ("busybox", "debian", "edge", "gcc", "nginx", "node", "openjdk", "python", "redis", "scipy")


def measure(place: Place) -> list[Figure]:
    """Megabytes of its two processes, keeper and daemon."""
    references = {image: place.lazy(image) for image in IMAGES}
    with lazyfsd(place) as daemon, containerd(place, **{OURS: daemon.socket}) as running:
        alone = _resident(daemon.keeper)
        layers = 0
        for image, reference in references.items():
            place.say(f"{image}: pulled and mounted")
            layers += _mount(running, image, reference.removeprefix("docker://"))
        mounted = _resident(daemon.keeper)
        place.say("until all of them is here")
        daemon.wait_until_pulled(uses=layers)
        there, peak = _resident(daemon.keeper), _resident(daemon.keeper, "VmHWM")
    images = f"{len(IMAGES)} images mounted"
    return [
        Figure("lazyfsd, nothing mounted", "MB", (alone,)),
        Figure(f"{images}", "MB", (mounted,), Bar("<=", 150)),
        Figure(f"{images}, and all here", "MB", (there,), Bar("<=", 150)),
        Figure(f"{images}, peak", "MB", (peak,)),
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


def _resident(keeper: int, field: str = "VmRSS") -> float:
    return sum(resident(pid, field) for pid in tree(keeper)) / 1e6
