"""lazyfsd's metrics for Prometheus: the values of `lazyfs status` as numbers.

Served by a server of its own in threads: a request waits for the event loop, but the loop never waits for a request. Counters are those of
this process and restart with the next one, as Prometheus expects.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from lazyfs.daemon.config import Address
from lazyfs.daemon.status import Measured
from lazyfs.errors import LazyfsError
from lazyfs.reports.status import BOUNDS, ContainerdStatus, GateStatus, RepositoryStatus, StoreStatus

_log = logging.getLogger(__name__)

_DEADLINE: Final = 10.0
"""Seconds to collect the metrics of one request."""
_MOST_REASONS: Final = 100
"""Layers whose reason for not being lazy is exported: each is a time series."""
Measure = Callable[[], Awaitable[Measured]]


@asynccontextmanager
async def metrics_server(address: Address, measure: Measure) -> AsyncIterator[None]:
    """Serve at `address` inside the block. A failure is only a warning: containers do not depend on metrics."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_LazyfsCollector(measure, trio.lowlevel.current_trio_token()))
    try:
        # In a thread: it may look up a host name.
        server, thread = await trio.to_thread.run_sync(start_http_server, address.port, address.host, registry)
    except OSError as error:
        _log.warning("cannot serve metrics at %s port %d: %s", address.host, address.port, error.strerror)
        yield
        return
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.shutdown)
        server.server_close()
        thread.join()


class _LazyfsCollector(Collector):
    """Collects metrics in the event loop, for a thread of the server."""

    def __init__(self, measure: Measure, token: trio.lowlevel.TrioToken) -> None:
        self._measure = measure
        self._token = token

    def describe(self) -> list[Metric]:
        """Empty, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            measured = trio.from_thread.run(partial(_within, self._measure), trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled, trio.TooSlowError, LazyfsError, OSError) as error:
            _log.warning("cannot collect metrics: %s", str(error) or "it would take too long")
            return
        yield from families(measured)


async def _within(measure: Measure) -> Measured:
    with trio.fail_after(_DEADLINE):
        return await measure()


def families(measured: Measured) -> Iterator[Metric]:
    """The metrics of these values."""
    yield _gauge("lazyfs_mounts", "Native mounts of `lazyfs mount` and `lazyfs run`.", {(): measured.mounts})
    yield from _containerds(measured.status.containerds)
    yield from _gate(measured.status.gate)
    yield from _sources(measured.repositories)
    yield from _store(measured.status.store)
    failures = CounterMetricFamily("lazyfs_task_failures", "Tasks that failed, by what they do.", labels=["task"])
    for kind, count in measured.status.failures.items():
        failures.add_metric([kind], count)
    yield failures


def _containerds(containerds: Iterable[ContainerdStatus]) -> Iterator[Metric]:
    snapshots = GaugeMetricFamily(
        "lazyfs_snapshots", "Snapshots of a containerd, by what they are.", labels=["containerd", "kind"]
    )
    roots = GaugeMetricFamily("lazyfs_roots", "Roots of containers and views that lazyfsd has mounted.", labels=["containerd"])
    refused = GaugeMetricFamily(
        "lazyfs_layers_not_lazy", "Layers that containerd wanted lazy, and had to unpack.", labels=["containerd"]
    )
    reasons = GaugeMetricFamily(
        "lazyfs_layer_not_lazy", "Why a layer is not lazy, for some of them.", labels=["containerd", "layer", "reason"]
    )
    unserved = GaugeMetricFamily(
        "lazyfs_containerd_unserved", "Containerds whose snapshots cannot be used.", labels=["containerd"]
    )
    for status in containerds:
        name = status.name
        unserved.add_metric([name], bool(status.trouble))
        if status.trouble:
            continue
        kinds = {"active": status.active, "view": status.views, "lazy": len(status.lazy), "unpacked": status.unpacked}
        for kind, count in kinds.items():
            snapshots.add_metric([name, kind], count)
        roots.add_metric([name], status.roots)
        refused.add_metric([name], len(status.refused))
        for layer in status.refused[:_MOST_REASONS]:
            reasons.add_metric([name, layer.key, layer.reason], 1)
    yield from (snapshots, roots, refused, reasons, unserved)


def _gate(status: GateStatus) -> Iterator[Metric]:
    answers = {"put in place": status.published, "served through the gate": status.entries, "error": status.errors}
    misses = CounterMetricFamily("lazyfs_misses", "Misses, by how they were answered.", labels=["answer"])
    for answer, count in answers.items():
        misses.add_metric([answer], count)
    yield misses
    total, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), status.latency.counts, strict=True):
        total += count
        buckets.append((bound, total))
    histogram = HistogramMetricFamily("lazyfs_miss_seconds", "How long a miss took until its file was in place.")
    histogram.add_metric([], buckets, status.latency.seconds)
    yield histogram
    yield _counter("lazyfs_gate_reads", "Reads that went through the gate.", status.reads)


def _sources(repositories: Iterable[RepositoryStatus]) -> Iterator[Metric]:
    labels = ["repository"]
    requests = CounterMetricFamily("lazyfs_requests", "Range requests to registries.", labels=labels)
    received = CounterMetricFamily("lazyfs_received_bytes", "Compressed bytes that came from registries.", labels=labels)
    unkept = CounterMetricFamily("lazyfs_unkept_chunks", "Chunks that the store had no space for.", labels=labels)
    errors = CounterMetricFamily("lazyfs_fetch_errors", "Fetches that failed, by their cause.", labels=["repository", "cause"])
    for name, status in _by_name(repositories).items():
        requests.add_metric([name], status.requests)
        received.add_metric([name], status.received)
        unkept.add_metric([name], status.unkept)
        for cause, count in status.errors.items():
            errors.add_metric([name, cause], count)
    yield from (requests, received, unkept, errors)


def _by_name(repositories: Iterable[RepositoryStatus]) -> dict[str, RepositoryStatus]:
    """The sums by name: two images of one repository have a fetcher each, and a label may occur only once."""
    found: dict[str, RepositoryStatus] = {}
    for status in repositories:
        known = found.get(status.name)
        found[status.name] = status if known is None else _sum(known, status)
    return found


def _sum(one: RepositoryStatus, other: RepositoryStatus) -> RepositoryStatus:
    return RepositoryStatus(
        one.name,
        one.requests + other.requests,
        one.received + other.received,
        one.chunks + other.chunks,
        one.unkept + other.unkept,
        dict(Counter(one.errors) + Counter(other.errors)),
        one.trouble or other.trouble,
    )


def _store(status: StoreStatus) -> Iterator[Metric]:
    sizes = {"used": status.used_bytes, "held": status.held_bytes, "limit": status.limit_bytes}
    yield _gauge(
        "lazyfs_store_bytes",
        "What the store takes; of that, what has been removed and is still open; what it may take (0: no bound).",
        {(state,): size for state, size in sizes.items()},
        ["state"],
    )
    yield _counter("lazyfs_evicted_objects", "Files that were evicted.", status.evicted_objects)
    yield _counter("lazyfs_evicted_bytes", "What they took.", status.evicted_bytes)
    yield _counter("lazyfs_scrubbed_bytes", "What was read again, to find what has rotted.", status.scrubbed_bytes)
    yield _counter("lazyfs_scrub_damaged", "What was found damaged.", status.scrub_damaged)


def _gauge(name: str, text: str, values: dict[tuple[str, ...], float], labels: list[str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels or [])
    for each, value in values.items():
        family.add_metric(list(each), value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
