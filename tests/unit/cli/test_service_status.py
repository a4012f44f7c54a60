"""What a lazyfsd that serves containerds has to say, in words."""

from __future__ import annotations

import msgspec

from lazyfs.cli.service_status import describe_service
from lazyfs.reports.status import ServiceStatus

REPORT = {
    "pid": 7,
    "mounts": [],
    "gate": {
        "published": 100, "entries": 2, "late": 1, "reads": 30, "errors": 0,
        "latency": {"counts": [0, 0, 90, 0, 0, 0, 10, 0, 0, 0, 0, 0], "seconds": 1.0},
    },
    "store": {"used_bytes": 5_000_000, "limit_bytes": 9_000_000, "evicted_objects": 3, "evicted_bytes": 1_000_000, "held_bytes": 0, "durable": True, "scrubbed_bytes": 0, "scrub_damaged": 0},
    "repositories": [
        {"name": "docker://host/repo", "requests": 4, "received": 2_000_000, "chunks": 9, "unkept": 1,
         "errors": {"Unreachable": 2}, "trouble": "it stands still"},
    ],
    "containerds": [
        {"name": "one", "snapshots": 30, "active": 1, "views": 0, "roots": 1, "unpacked": 25, "trouble": "",
         "lazy": [{"reference": "docker://host/repo", "digest": "sha256:abc", "size": 1, "uses": 1, "trouble": "its TOC is lost"}],
         "refused": [{"key": f"key-{number}", "reason": "was not converted"} for number in range(25)]},
        {"name": "two", "snapshots": 0, "active": 0, "views": 0, "roots": 0, "lazy": [], "unpacked": 0, "refused": [],
         "trouble": "its database is damaged"},
    ],
    "failures": {"relay": 1, "TOC": 2},
}  # fmt: skip


def test_all_of_it_is_reported() -> None:
    """Each figure with its word; reasons, as many as can be read."""
    lines = describe_service(msgspec.convert(REPORT, ServiceStatus))
    assert lines[:4] == [
        "containerd one: 30 snapshots, 1 lazy layers, 25 unpacked",
        "  1 active, 0 views, 1 of their roots mounted by lazyfsd",
        "  sha256:abc from docker://host/repo: its TOC is lost",
        "  key-0 is not lazy: the layer was not converted",
    ]
    assert lines[23] == "  and 5 more that are not lazy (--json lists them)"
    assert lines[24:] == [
        "containerd two is not served: its database is damaged",
        "fetched 2.0 MB in 4 requests from docker://host/repo; errors: 2 Unreachable; not stored: 1",
        "  it stands still",
        (
            "misses: 100 put in place, half of them within 5 ms, 99 % within 100 ms; 2 served through the gate in 30 reads,"
            " 1 of them because they were late; 0 errors"
        ),
        "failed tasks: TOC (2), relay (1); the log says why",
        "store: 5.0 MB of 9.0 MB used; 3 objects (1.0 MB) evicted  (process 7)",
    ]
