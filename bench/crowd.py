"""Thirty containers of one image that are started together: from the first command on, to the output of each."""

from __future__ import annotations

import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from bench.figure import Bar, Baseline, Figure
from bench.place import Place
from bench.snapshotters import OURS, containerd, lazyfsd, pull
from tests.containerd import Containerd

IMAGE = "python"
# Of a process that ends at once, ctr now and then loses what it said, on whatever snapshotter.
HELLO = ("python3", "-c", 'import time; print("hello", flush=True); time.sleep(0.2)')
CROWD = 30
ROUNDS = 3
PATIENCE_S = 120
WHOLE = "overlayfs"


def measure(place: Place) -> list[Figure]:
    """Medians of each crowd; where the store is empty, how many have failed."""
    lazy, original = place.lazy(IMAGE), place.original(IMAGE)
    full, empty, whole = list[float](), list[float](), list[float]()
    failed = list[float]()
    for number in range(ROUNDS):
        with lazyfsd(place) as daemon, containerd(place, **{OURS: daemon.socket}) as running:
            place.say(f"crowd, store empty: round {number + 1} of {ROUNDS}")
            name = pull(running, lazy, OURS)
            outputs = _start_all(running, name, OURS)
            failed.append(CROWD - len(outputs))
            empty.append(statistics.median(outputs))
            running.collect()
            daemon.wait_until_pulled()
            pulled = pull(running, original, WHOLE)
            place.say(f"crowd, store full: round {number + 1} of {ROUNDS}")
            for snapshotter in (OURS, WHOLE) if number % 2 else (WHOLE, OURS):
                outputs = _start_all(running, {OURS: name, WHOLE: pulled}[snapshotter], snapshotter)
                if len(outputs) < CROWD:
                    raise RuntimeError(f"{CROWD - len(outputs)} of {CROWD} containers on {snapshotter} have failed")
                (full if snapshotter == OURS else whole).append(statistics.median(outputs))
    theirs = Baseline("overlayfs, full pull", tuple(whole))
    return [
        Figure(f"{CROWD} containers, store full, median start", "s", tuple(full), Bar("<=", 1.5, "ratio"), theirs),
        Figure(f"{CROWD} containers, store empty, median start", "s", tuple(empty), None, theirs),
        Figure(f"{CROWD} containers, store empty, failed", "containers", tuple(failed), Bar("==", 0)),
    ]


def _start_all(running: Containerd, name: str, snapshotter: str) -> list[float]:
    """Seconds to the output of each that did not fail."""
    start = time.perf_counter()
    crowd = [
        running.start("run", "--rm", "--snapshotter", snapshotter, name, f"{snapshotter}-{number}", *HELLO)
        for number in range(CROWD)
    ]

    def wait(process: subprocess.Popen[bytes]) -> float | None:
        assert process.stdout
        line = process.stdout.readline()
        taken = time.perf_counter() - start
        process.communicate(timeout=PATIENCE_S)
        return taken if process.returncode == 0 and line else None

    with ThreadPoolExecutor(CROWD) as threads:
        return [taken for taken in threads.map(wait, crowd) if taken is not None]
