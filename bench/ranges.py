"""Why blob bytes have a reader of their own: its ranges beside httpx's, from the same registry, 8 at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.figure import Baseline, Figure
from bench.place import ROUNDS, Place
from tests.commands import run

LENGTHS = {"64 KiB": (64 << 10, 2000), "1 MiB": (1 << 20, 400)}
"""Bytes a range, and how many of them."""


def measure(place: Place) -> list[Figure]:
    """Throughput, and CPU time a request."""
    reference = place.original("python").rpartition(":")[0]
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", place.original("python")).stdout
    layer = max(json.loads(raw)["layers"], key=lambda layer: layer["size"])
    figures = []
    for words, (length, count) in LENGTHS.items():
        rates: dict[str, list[float]] = {"ours": [], "httpx": []}
        costs: dict[str, list[float]] = {"ours": [], "httpx": []}
        for number in range(ROUNDS):
            place.say(f"ranges of {words}: round {number + 1} of {ROUNDS}")
            for which, rate in rates.items():
                client = (sys.executable, "-m", "bench.range_client", which, reference)
                arguments = (layer["digest"], str(layer["size"]), str(length), str(count))
                done = run(*client, *arguments, env=place.environment, cwd=Path(__file__).parent.parent)
                taken = json.loads(done.stdout)
                rate.append(length * count / 1e6 / taken["seconds"])
                costs[which].append(taken["cpu"] / count * 1e3)
        figures += [
            Figure(f"ranges of {words}", "MB/s", tuple(rates["ours"]), None, Baseline("httpx", tuple(rates["httpx"]))),
            Figure(f"ranges of {words}, CPU", "ms/request", tuple(costs["ours"]), None, Baseline("httpx", tuple(costs["httpx"]))),
        ]
    return figures
