"""lazyfsd's metrics for Prometheus."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from lazyfs.daemon.config import Address
from lazyfs.daemon.metrics import families, metrics_server
from lazyfs.daemon.status import Measured
from lazyfs.errors import StoreUnusable
from lazyfs.reports.status import BOUNDS, RepositoryStatus, ServiceStatus
from tests.conftest import LogWatch

REPOSITORY = RepositoryStatus("docker://r/a", 3, 500, 2, 1, {"Unreachable": 2}, "")
REPORT: dict[str, Any] = {
    "pid": 7,
    "mounts": [],
    "store": {
        "used_bytes": 10, "held_bytes": 1, "limit_bytes": 0, "durable": True, "evicted_objects": 3, "evicted_bytes": 30,
        "scrubbed_bytes": 4, "scrub_damaged": 0,
    },
    "gate": {
        "published": 5, "entries": 6, "late": 1, "reads": 8, "errors": 9,
        "latency": {"counts": [1, *[0] * (len(BOUNDS) - 1), 2], "seconds": 7.5},
    },
    "containerds": [
        {
            "name": "containerd", "snapshots": 9, "active": 1, "views": 2, "roots": 3, "lazy": 2 * [{"reference": "docker://r/a", "digest": "sha256:a", "size": 1, "uses": 1, "trouble": ""}], "unpacked": 4,
            "refused": [{"key": f"layer-{number}", "reason": 'says "no"'} for number in range(150)],
            "trouble": "",
        }
    ],
    "repositories": [],
    "failures": {"TOC": 2},
}  # fmt: skip


def measured(*repositories: RepositoryStatus) -> Measured:
    return Measured(msgspec.convert(REPORT, ServiceStatus), 2, repositories)


async def measure() -> Measured:
    return measured(REPOSITORY)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def samples(text: str) -> dict[str, float]:
    """By name and labels, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            found[" ".join([each.name, *each.labels.values()])] = each.value
    return found


async def ask(port: int) -> dict[str, float]:
    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    return samples(await trio.to_thread.run_sync(read))


async def test_served_over_http() -> None:
    """All values of `lazyfs status` for a service, in Prometheus' format."""
    port = free_port()
    async with metrics_server(Address("127.0.0.1", port), measure):
        text = await ask(port)
    assert text["lazyfs_mounts"] == 2
    assert [text[f"lazyfs_snapshots containerd {kind}"] for kind in ("active", "view", "lazy", "unpacked")] == [1, 2, 2, 4]
    assert text["lazyfs_roots containerd"] == 3
    assert text["lazyfs_layers_not_lazy containerd"] == 150
    assert text['lazyfs_layer_not_lazy containerd layer-0 says "no"'] == 1
    assert sum(name.startswith("lazyfs_layer_not_lazy ") for name in text) == 100
    assert [text[f"lazyfs_misses_total {answer}"] for answer in ("put in place", "served through the gate", "error")] == [5, 6, 9]
    assert text["lazyfs_miss_seconds_bucket 0.001"] == text["lazyfs_miss_seconds_bucket 2.0"] == 1
    assert text["lazyfs_miss_seconds_bucket +Inf"] == text["lazyfs_miss_seconds_count"] == 3
    assert text["lazyfs_miss_seconds_sum"] == 7.5
    assert text["lazyfs_received_bytes_total docker://r/a"] == 500
    assert text["lazyfs_fetch_errors_total Unreachable docker://r/a"] == 2
    assert text["lazyfs_store_bytes used"] == 10
    assert text["lazyfs_task_failures_total TOC"] == 2
    assert text["lazyfs_evicted_bytes_total"] == 30
    assert text["process_resident_memory_bytes"] > 0
    with pytest.raises(OSError, match="refused"):
        await ask(port)


def test_two_fetchers_of_one_repository_are_one() -> None:
    """Each series occurs once, however many fetchers a repository has."""
    report = measured(REPOSITORY, msgspec.structs.replace(REPOSITORY, errors={"NotFound": 1, "Unreachable": 1}))
    (requests,) = [family for family in families(report) if family.name == "lazyfs_requests"]
    (errors,) = [family for family in families(report) if family.name == "lazyfs_fetch_errors"]
    assert [each.value for each in requests.samples] == [6]
    assert {each.labels["cause"]: each.value for each in errors.samples} == {"Unreachable": 3, "NotFound": 1}


async def test_what_cannot_be_reported(expect_log: LogWatch) -> None:
    """A store that fails costs the answer, and no more; the process's own numbers come all the same."""
    expect_log("cannot collect metrics: the store has gone")

    async def fail() -> Measured:
        raise StoreUnusable("the store has gone")

    port = free_port()
    async with metrics_server(Address("127.0.0.1", port), fail):
        text = await ask(port)
    assert "process_resident_memory_bytes" in text
    assert "lazyfs_mounts" not in text


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


async def test_an_address_that_is_taken(taken: int, expect_log: LogWatch) -> None:
    """Is a warning: the daemon goes on."""
    expect_log("cannot serve metrics at 127.0.0.1 port .*: Address already in use")
    async with metrics_server(Address("127.0.0.1", taken), measure):
        pass
