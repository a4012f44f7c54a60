"""python from pull to output over a link: containerd with a full pull, with the peer, and with us, all of them with nothing there yet.

The registry is at the far end of the link, everything else at the near one. The peer's image is optimised by ctr-remote for the very
command, ours is converted with the record of it. Both are pulled by the same client, `ctr-remote images rpull`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from bench.figure import Bar, Baseline, Figure
from bench.link import FAR, link
from bench.peer import NAME as PEER
from bench.peer import build_peer, optimise, stargz
from bench.place import Place
from bench.roots import stop_daemon
from bench.snapshotters import OURS, containerd, lazyfsd, pull
from tests.containerd import Containerd
from tests.docker_registry import Registry

IMAGE = "python"
HELLO = ("python3", "-c", 'print("hello")')
ROUND_TRIP_MS = 20
RATES = (100, 1000)
"""Mbit/s."""
ROUNDS = 5
WHOLE = "overlayfs"
"""What containerd calls its own."""


class Way(NamedTuple):
    """One way to have a container of the image."""

    reference: str
    """In the registry of the place."""
    start: Callable[[str], AbstractContextManager[Mapping[str, Path]]]
    """Its snapshotter with nothing there, for the registry at an address: the socket, by name."""


def measure(place: Place) -> list[Figure]:
    """Seconds, over both links."""
    program = build_peer(place)
    ways = {
        WHOLE: Way(place.original(IMAGE), lambda _: nullcontext({})),
        PEER: Way(optimise(place, IMAGE, HELLO), lambda address: _peer(place, program, address)),
        OURS: Way(recorded(place, IMAGE, *HELLO), lambda address: _ours(place, address)),
    }
    return [figure for mbit in RATES for figure in _over(place, ways, mbit)]


def recorded(place: Place, image: str, *command: str) -> str:
    """An image converted with the record of what this command reads in a container of it: its reference."""
    record = place.new_folder() / "record"
    place.new_store()
    place.say(f"lazyfs run --record {record}")
    options = ("--store", place.lazyfs.store, "--background", "off", "--record", record)
    try:
        place.lazyfs.run("run", *options, place.lazy(image), *command)
    finally:
        stop_daemon(place.lazyfs.store)
    reference = f"docker://{place.registry.address}/recorded/{image}:v1"
    place.convert(place.built(image), reference, "--prioritize", record)
    return reference


def _over(place: Place, ways: Mapping[str, Way], mbit: int) -> Iterator[Figure]:
    pulls, outputs = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    moved = defaultdict[str, list[float]](list)
    with link(ROUND_TRIP_MS, mbit) as ends:
        where = f"{ROUND_TRIP_MS} ms, {mbit} Mbit/s"
        place.say(f"{where}: connecting takes {ends.observed.connect_ms:.1f} ms, {ends.observed.mbit:.0f} Mbit/s come through")
        with ends.far.entered():
            registry = Registry(place.new_folder(), host=FAR, storage=place.registry.storage)
            registry.start()
        try:
            for number in range(ROUNDS):
                place.say(f"{where}: round {number + 1} of {ROUNDS}")
                for name, way in ways.items():
                    with ends.far.entered():
                        before = len(registry.requests())
                    with ends.near.entered(), way.start(registry.address) as sockets, containerd(place, **sockets) as running:
                        pulled, output = _pull_and_run(
                            running, way.reference.replace(place.registry.address, registry.address), name
                        )
                        with ends.far.entered():
                            moved[name].append(sum(request.size for request in registry.requests()[before:]) / 1e6)
                    pulls[name].append(pulled)
                    outputs[name].append(output)
        finally:
            registry.stop()
    yield Figure(f"{where}: connecting", "ms", (ends.observed.connect_ms,))
    yield Figure(f"{where}: one connection", "Mbit/s", (ends.observed.mbit,))
    against = Baseline("the peer", tuple(outputs[PEER]))
    yield Figure(f"{where}: from pull to output", "s", tuple(outputs[OURS]), Bar("<=", 1, "ratio"), against)
    whole = Baseline("full pull", tuple(outputs[WHOLE]))
    yield Figure(f"{where}: from pull to output", "s", tuple(outputs[OURS]), None, whole)
    yield Figure(f"{where}: the pull of it", "s", tuple(pulls[OURS]), None, Baseline("the peer", tuple(pulls[PEER])))
    yield Figure(f"{where}: moved until the output", "MB", tuple(moved[OURS]), None, Baseline("the peer", tuple(moved[PEER])))


def _pull_and_run(running: Containerd, reference: str, snapshotter: str) -> tuple[float, float]:
    """Seconds from the pull's beginning to its end, and to the container's first line of output."""
    start = time.perf_counter()
    name = pull(running, reference, snapshotter)
    pulled = time.perf_counter() - start
    process = running.start("run", "--rm", "--snapshotter", snapshotter, name, "hello", *HELLO)
    assert process.stdout
    line = process.stdout.readline()
    taken = time.perf_counter() - start
    _, said = process.communicate(timeout=60)
    if process.returncode or not line:
        raise RuntimeError(f"{name} on {snapshotter} ended with {process.returncode}: {said.decode(errors='replace')}")
    return pulled, taken


@contextmanager
def _peer(place: Place, program: Path, address: str) -> Iterator[Mapping[str, Path]]:
    with stargz(program, place.new_folder() / PEER, address) as socket:
        yield {PEER: socket}


@contextmanager
def _ours(place: Place, address: str) -> Iterator[Mapping[str, Path]]:
    with lazyfsd(place, plain_http=address) as daemon:
        yield {OURS: daemon.socket}
