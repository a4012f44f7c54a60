"""The part of `lazyfs status` about a lazyfsd that serves containerds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lazyfs.cli.output import megabytes
from lazyfs.reports.status import ContainerdStatus, RepositoryStatus, ServiceStatus

_MAX_REFUSED: Final = 20
"""Layers of one containerd that are listed as not lazy; the rest is counted."""


def describe_service(status: ServiceStatus) -> list[str]:
    """The lines of text."""
    lines = [line for containerd in status.containerds for line in _containerd(containerd)]
    lines += [line for repository in status.repositories for line in _repository(repository)]
    gate, store = status.gate, status.store
    latency = gate.latency
    took = (
        f", half of them within {_time(latency.quantile(0.5))}, 99 % within {_time(latency.quantile(0.99))}"
        if latency.count
        else ""
    )
    lines.append(
        f"misses: {gate.published} put in place{took}; {gate.entries} served through the gate in {gate.reads} reads,"
        f" {gate.late} of them because they were late; {gate.errors} errors"
    )
    limit = f" of {megabytes(store.limit_bytes)}" if store.limit_bytes else ""
    evicted = f"; {store.evicted_objects} objects ({megabytes(store.evicted_bytes)}) evicted" if store.evicted_objects else ""
    if failures := failed_tasks(status.failures):
        lines.append(failures)
    lines.append(f"store: {megabytes(store.used_bytes)}{limit} used{evicted}  (process {status.pid})")
    return lines


def failed_tasks(counts: Mapping[str, int]) -> str:
    """A line of text; empty if no task has failed."""
    status = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
    return f"failed tasks: {status}; the log says why" if status else ""


def _containerd(status: ContainerdStatus) -> list[str]:
    if status.trouble:
        return [f"containerd {status.name} is not served: {status.trouble}"]
    lines = [
        f"containerd {status.name}: {status.snapshots} snapshots, {len(status.lazy)} lazy layers, {status.unpacked} unpacked"
    ]
    lines.append(f"  {status.active} active, {status.views} views, {status.roots} of their roots mounted by lazyfsd")
    lines += [f"  {layer.digest} from {layer.reference}: {layer.trouble}" for layer in status.lazy if layer.trouble]
    refused = status.refused
    lines += [f"  {layer.key} is not lazy: the layer {layer.reason}" for layer in refused[:_MAX_REFUSED]]
    if len(refused) > _MAX_REFUSED:
        lines.append(f"  and {len(refused) - _MAX_REFUSED} more that are not lazy (--json lists them)")
    return lines


def _repository(status: RepositoryStatus) -> list[str]:
    errors = ", ".join(f"{count} {name}" for name, count in sorted(status.errors.items()))
    line = f"fetched {megabytes(status.received)} in {status.requests} requests from {status.name}"
    if errors:
        line += f"; errors: {errors}"
    if status.unkept:
        line += f"; not stored: {status.unkept}"
    return [line, *([f"  {status.trouble}"] if status.trouble else [])]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.0f} s" if seconds != float("inf") else "more than 2 s"
