"""What `lazyfs status` says of a mount."""

from __future__ import annotations

import msgspec
import pytest

from lazyfs.cli.status import _describe
from lazyfs.reports.status import LayerStatus, MountStatus

MOUNTED = MountStatus(
    directory="/mnt",
    image="docker://registry.example/app@sha256:00",
    pid=1,
    store="/store",
    background="on",
    complete=True,
    missing_chunks=0,
    missing_bytes=0,
    layers=2,
    chunks=0,
    unkept=0,
    damaged=0,
    errors={},
    trouble="",
    requests=0,
    received_bytes=0,
    layer_bytes=60_000_000,
    total_bytes=90_000_000,
)
LAZY, WHOLE = LayerStatus("sha256:aa", 20_000_000, ""), LayerStatus("sha256:bb", 40_000_000, "has no TOC")


@pytest.mark.parametrize(
    ("layers", "requests", "received", "line"),
    [
        ((LAZY,), 3, 5_000_000, "fetched 5.0 MB of 60.0 MB in 3 requests  ("),
        ((LAZY, WHOLE), 3, 5_000_000, "fetched 5.0 MB of 20.0 MB in 3 requests, 40.0 MB of layers fetched whole  ("),
        ((WHOLE,), 0, 0, "  40.0 MB of layers fetched whole  ("),
    ],
)
def test_layers_that_were_fetched_whole_are_counted_as_such(
    layers: tuple[LayerStatus, ...], requests: int, received: int, line: str
) -> None:
    """An image that came whole was not "fetched 0.0 MB in 0 requests"."""
    status = msgspec.structs.replace(MOUNTED, layer_states=layers, requests=requests, received_bytes=received)
    assert line in _describe(status)
