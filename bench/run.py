"""`lazyfs run` of a hello: from the command to its output, with nothing here, and beside plain runc with everything here."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

from bench.container import build_reader, write_bundle
from bench.figure import Bar, Baseline, Figure
from bench.place import LAZYFS, Place
from bench.roots import lazy_root, stop_daemon
from lazyfs.bundle.bundle import ROOT
from tests.commands import umoci_unpack
from tests.containerd import Containerd

IMAGE = "python"
HELLO = ("python3", "-c", 'print("hello")')
FEW_ROUNDS = 5
MANY_ROUNDS = 20


def measure(place: Place) -> list[Figure]:
    """Seconds with an empty store and no daemon; milliseconds with a full one and the daemon up."""
    image, tools = place.lazy(IMAGE), build_reader(place.new_folder() / "tools")
    empty, pulls = list[float](), list[float]()
    with Containerd(place.new_folder() / "c") as containerd:
        for number in range(FEW_ROUNDS):
            place.say(f"run, empty store: round {number + 1} of {FEW_ROUNDS}")
            place.new_store()
            try:
                empty.append(seconds_to_output(place, LAZYFS, "run", "--store", place.lazyfs.store, image, *HELLO))
            finally:
                stop_daemon(place.lazyfs.store)
            start = time.perf_counter()
            # A name space of its own shares nothing, so that every pull is a first one.
            containerd.pull(place.original(IMAGE), namespace=f"round-{number}")
            pulls.append(time.perf_counter() - start)
    bundle = place.new_folder()
    umoci_unpack(place.built(IMAGE), bundle / "image").rename(bundle / ROOT)
    write_bundle(bundle, *HELLO, tools=tools)
    place.new_store()
    ours, plain = list[float](), list[float]()
    with lazy_root(place, image, "--background", "wait"):
        for number in range(MANY_ROUNDS):
            place.say(f"run, full store: round {number + 1} of {MANY_ROUNDS}")
            ours.append(1e3 * seconds_to_output(place, LAZYFS, "run", "--store", place.lazyfs.store, image, *HELLO))
            plain.append(
                1e3 * seconds_to_output(place, "runc", "--root", bundle / "runc", "run", "--bundle", bundle, bundle.name)
            )
    baseline = Baseline("runc run", tuple(plain))
    return [
        Figure("empty store, no daemon, to output", "s", tuple(empty), Bar("<=", 1), Baseline("full pull alone", tuple(pulls))),
        Figure("full store, daemon up, to output", "ms", tuple(ours), None, baseline),
        Figure(
            "full store, daemon up, more than runc run",
            "ms",
            (statistics.median(ours) - statistics.median(plain),),
            Bar("<=", 150),
        ),
    ]


def seconds_to_output(place: Place, *command: str | Path) -> float:
    """From the exec of a program to its first line of output. Returns when it has ended. RuntimeError where it failed."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=place.environment) as process:
        assert process.stdout
        line = process.stdout.readline()
        taken = time.perf_counter() - start
    if process.returncode or not line:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode} and {line!r}")
    return taken
