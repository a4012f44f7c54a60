"""Pull an image into containerd, lazily: containers start from it at once, and what they read arrives when they read it.

For containerd 1.6 and 1.7, whose `ctr images pull` tells a snapshotter too little for that; later ones can do without this command. A
layer that cannot be lazy is brought and unpacked as ctr would. Afterwards the image is like any other: ctr run, ctr images rm.
Killed or failed, it goes on the next time where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from lazyfs.cli.importing import importing
from lazyfs.cli.options import access_of, platform_of
from lazyfs.errors import UsageError
from lazyfs.source.open import open_source
from lazyfs.source.reference import Reference, parse_reference

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lazyfs.format.manifest import Descriptor
    from lazyfs.pull.layers import PulledLayer
    from lazyfs.pull.pull import Pulled

_ADDRESS: Final = Path("/run/containerd/containerd.sock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("reference", metavar="REF", help="the image: HOST/REPO[:TAG][@DIGEST]; python:3.12 for Docker Hub's")
    parser.add_argument("--address", metavar="SOCKET", type=Path, default=_ADDRESS, help=f"containerd's (default: {_ADDRESS})")
    parser.add_argument("--namespace", metavar="NAME", default="default", help="containerd's; CRI's is k8s.io (default: default)")
    parser.add_argument("--snapshotter", metavar="NAME", default="lazyfs", help="what containerd calls lazyfsd (default: lazyfs)")
    parser.add_argument("--platform", metavar="OS/ARCH", help="which image of several (default: this machine's)")
    parser.add_argument("--creds", metavar="USER:PASSWORD", help="for this pull, instead of ~/.docker/config.json")
    parser.add_argument("--plain-http", action="store_true", help="no TLS (loopback never uses it)")
    parser.add_argument(
        "--complete", action="store_true", help="bring the blobs of lazy layers as well: export, push and check need them"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Pull. Raises LazyfsError."""
    reference = parse_reference(arguments.reference)
    if reference.transport != "docker":
        raise UsageError(
            f"{reference} is no image in a registry: lazyfsd could not fetch what is missing",
            hint="Push it to one: lazyfs convert or skopeo copy",
        )
    with _Display() as display:
        pulled = trio.run(_pull, arguments, reference, display)
    if arguments.creds:
        print(
            "lazyfs: --creds was for this pull: lazyfsd fetches with what root's docker login left, and layers fall back without it",
            file=sys.stderr,
        )
    print(json.dumps(_report(arguments, pulled)) if arguments.json else _describe(pulled), flush=True)
    return 0


async def _pull(arguments: argparse.Namespace, reference: Reference, display: _Display) -> Pulled:
    try:
        with importing():
            from lazyfs.pull.containerd import Containerd
            from lazyfs.pull.pull import PullOrder, pull
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"grpc", "google"}:
            raise
        raise UsageError("lazyfs pull needs grpcio and protobuf", hint="Install lazyfs[containerd]") from error
    order = PullOrder(reference, platform_of(arguments), arguments.snapshotter, arguments.complete)
    with importing():
        source = open_source(reference, access_of(arguments))
    try:
        with Containerd(arguments.address.absolute(), arguments.namespace) as containerd:
            return await pull(containerd, source, order, display.received, display.layer)
    finally:
        await source.aclose()


class _Display(AbstractContextManager["_Display"]):
    """What is told on the way: a line for each layer that is not lazy, a bar for each blob, where there is a terminal."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def layer(self, layer: PulledLayer) -> None:
        """Its snapshot is there."""
        if layer.reason:
            print(f"lazyfs: layer {layer.digest} {layer.reason}", file=sys.stderr)

    def received(self, blob: Descriptor, count: int) -> None:
        """So many bytes of it are there."""
        if not sys.stderr.isatty():
            return
        if self._bars is None:
            self._bars = self._stack.enter_context(_bars())
        if blob.digest not in self._tasks:
            self._tasks[blob.digest] = self._bars.add_task(blob.digest[7:19], total=blob.size)
        self._bars.update(self._tasks[blob.digest], completed=count)


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _report(arguments: argparse.Namespace, pulled: Pulled) -> dict[str, Any]:
    return {
        "image": pulled.name,
        "digest": pulled.digest,
        "manifest": pulled.manifest_digest,
        "namespace": arguments.namespace,
        "snapshotter": arguments.snapshotter,
        "layers": [
            {"digest": it.digest, "size": it.size, "chain_id": it.chain_id, "lazy": not it.reason, "reason": it.reason}
            for it in pulled.layers
        ],
    }


def _describe(pulled: Pulled) -> str:
    lazy = sum(not layer.reason for layer in pulled.layers)
    return f"{pulled.name} {pulled.digest}: {lazy} of {len(pulled.layers)} layers lazy"
