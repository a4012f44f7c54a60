"""From the command to snapshots that containers start from, registry on loopback, nothing there yet; and what had to move for it.

By two clients: `ctr-remote images rpull` and `lazyfs pull`. What moves is counted where the background is off, for which nobody waits.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.figure import Bar, Figure
from bench.place import LAZYFS, Place
from bench.snapshotters import OURS, Lazyfsd, containerd, lazyfsd, pull
from tests.commands import run
from tests.containerd import Containerd
from tests.docker_registry import Request

ROUNDS = 5
FETCHES = 2
"""Of a layer's metadata: the second where the first guess at its size was too small."""
Client = Callable[[Place, Lazyfsd, Containerd, str], None]


def measure(place: Place) -> list[Figure]:
    """python, by both clients."""
    return _measure(place, "python", Bar("<=", 0.4))


def measure_torch(place: Place) -> list[Figure]:
    """torch, by both clients. Building it takes minutes and 15 GB of disk: measured only when asked for by name."""
    return _measure(place, "torch", Bar("<=", 1.5))


def _measure(place: Place, image: str, bar: Bar) -> list[Figure]:
    reference = place.lazy(image)
    taken: dict[str, list[float]] = {name: [] for name in CLIENTS}
    for number in range(ROUNDS):
        place.say(f"pull {image}: round {number + 1} of {ROUNDS}")
        for name in CLIENTS:
            taken[name].append(_seconds(place, name, reference, background=True))
    figures = []
    for name, seconds in taken.items():
        figures.append(Figure(f"{image}: {name}", "s", tuple(seconds), bar))
        before = len(place.registry.requests())
        _seconds(place, name, reference, background=False)
        requests = place.registry.requests()[before:]
        figures += [
            Figure(f"{image}: {name}, moved", "MB", (sum(request.size for request in requests) / 1e6,)),
            Figure(f"{image}: {name}, requests", "requests", (len(requests),)),
            Figure(f"{image}: {name}, more than it takes", "requests", (len(_needless(reference, requests)),), Bar("==", 0)),
        ]
    return figures


def _seconds(place: Place, client: str, reference: str, *, background: bool) -> float:
    with lazyfsd(place, background=background) as daemon, containerd(place, **{OURS: daemon.socket}) as running:
        start = time.perf_counter()
        CLIENTS[client](place, daemon, running, reference)
        return time.perf_counter() - start


def _rpull(_: Place, __: Lazyfsd, running: Containerd, reference: str) -> None:
    pull(running, reference, OURS)


def _lazyfs_pull(place: Place, daemon: Lazyfsd, running: Containerd, reference: str) -> None:
    options: tuple[str | Path, ...] = ("--store", daemon.store, "--address", running.folder / "socket", "--snapshotter", OURS)
    # Where certificates are is not a question of a registry on loopback, and lazyfsd leaves to the command what it cannot know.
    environment = {name: value for name, value in place.environment.items() if not name.startswith("SSL_CERT_")}
    run(LAZYFS, "pull", *options, reference, env=environment)


def _needless(reference: str, requests: list[Request]) -> list[str]:
    """Paths of what was asked for beyond manifests, the config and a fetch or two of each layer's metadata; as often as that."""
    manifest = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", reference).stdout)
    allowed = Counter({layer["digest"]: FETCHES for layer in manifest["layers"]})
    allowed[manifest["config"]["digest"]] = 1
    asked = Counter(request.path.rpartition("/")[2] for request in requests if "/manifests/" not in request.path)
    return list((asked - allowed).elements())


CLIENTS: dict[str, Client] = {"ctr-remote images rpull": _rpull, "lazyfs pull": _lazyfs_pull}
