"""Pull an image into containerd, lazily: containers start from it at once, and what they read arrives when they read it.

For containerd 1.6 and 1.7, whose `ctr images pull` tells a snapshotter too little for that; later ones can do without this command. A
layer that cannot be lazy is brought and unpacked as ctr would. Afterwards the image is like any other: ctr run, ctr images rm.
Killed or failed, it goes on the next time where it was.

Where the lazyfsd of the state directory runs, it carries the pull out, which is quicker; not with --creds, nor where the environment names
proxies, certificates or a docker configuration of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyfs.cli.importing import importing
from lazyfs.cli.options import access_of, add_store, platform_of, store_of
from lazyfs.daemon.client import Client
from lazyfs.daemon.orders import PullOrder, Refused, Report
from lazyfs.errors import LocalError, UsageError
from lazyfs.source.reference import Reference, parse_reference

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ADDRESS: Final = Path("/run/containerd/containerd.sock")
_PATIENCE: Final = 5.0
"""Seconds for lazyfsd to accept an order: its socket is there also while it does not come up."""
_ENVIRONMENT: Final = ("DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


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
    add_store(parser)
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
        pulled = None if arguments.creds or _has_a_world_of_its_own() else _pull_by_lazyfsd(arguments, display)
        pulled = pulled or _pull_here(arguments, reference, display)
    if arguments.creds:
        print(
            "lazyfs: --creds was for this pull: lazyfsd fetches with what root's docker login left, and layers fall back without it",
            file=sys.stderr,
        )
    where = {"namespace": arguments.namespace, "snapshotter": arguments.snapshotter}
    print(json.dumps({**pulled, **where}) if arguments.json else _describe(pulled), flush=True)
    return 0


def _pull_by_lazyfsd(arguments: argparse.Namespace, display: _Display) -> Report | None:
    """None where it is done here: none runs or comes up, it takes on no more, or is an older one. Raises Refused: it has failed."""
    order = PullOrder(
        reference=arguments.reference,
        platform=str(platform_of(arguments)),
        address=str(arguments.address.absolute()),
        namespace=arguments.namespace,
        snapshotter=arguments.snapshotter,
        plain_http=arguments.plain_http,
        complete=arguments.complete,
    )
    accepted, last = False, Report()
    try:
        for last in Client(store_of(arguments), _PATIENCE, only_first=True).call(order, start=False):
            accepted = accepted or "accepted" in last
            if "layer" in last:
                display.layer(last["layer"])
            elif "task" in last:
                display.received(last["task"], last["done_bytes"], last["total"])
    except Refused:
        if accepted:
            raise
        return None
    except LocalError:
        return None
    for layer in last["layers"]:
        display.layer(layer)
    return {name: value for name, value in last.items() if name != "done"}


def _has_a_world_of_its_own() -> bool:
    """Whether what this command would go by is not what lazyfsd goes by: proxies, certificates, credentials."""
    if any(os.environ.get(name) for each in _ENVIRONMENT for name in (each, each.lower())):
        return True
    home = Path.home()
    return home != Path(pwd.getpwuid(os.geteuid()).pw_dir) and (home / ".docker" / "config.json").exists()


def _pull_here(arguments: argparse.Namespace, reference: Reference, display: _Display) -> Report:
    with importing():
        import trio
    report: Report = trio.run(_pull, arguments, reference, display)
    return report


async def _pull(arguments: argparse.Namespace, reference: Reference, display: _Display) -> Report:
    try:
        with importing():
            from lazyfs.pull.containerd import Containerd
            from lazyfs.pull.pull import PullOrder as Wanted
            from lazyfs.pull.pull import pull
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"grpc", "google"}:
            raise
        raise UsageError("lazyfs pull needs grpcio and protobuf", hint="Install lazyfs[containerd]") from error
    with importing():
        from lazyfs.source.open import open_source

        source = open_source(reference, access_of(arguments))
    wanted = Wanted(reference, platform_of(arguments), arguments.snapshotter, arguments.complete)
    try:
        with Containerd(arguments.address.absolute(), arguments.namespace) as containerd:
            pulled = await pull(
                containerd,
                source,
                wanted,
                lambda blob, count: display.received(blob.digest, count, blob.size),
                lambda layer: display.layer(layer.report()),
            )
        return pulled.report()
    finally:
        await source.aclose()


class _Display(AbstractContextManager["_Display"]):
    """What is told on the way: a line for each layer that is not lazy, a bar for each blob, where there is a terminal."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def layer(self, layer: Report) -> None:
        """Its snapshot is there. Told once."""
        if layer["reason"] and layer["digest"] not in self._told:
            self._told.add(layer["digest"])
            print(f"lazyfs: layer {layer['digest']} {layer['reason']}", file=sys.stderr)

    def received(self, digest: str, count: int, size: int) -> None:
        """So many bytes of a blob are there."""
        if not sys.stderr.isatty():
            return
        if self._bars is None:
            self._bars = self._stack.enter_context(_bars())
        if digest not in self._tasks:
            self._tasks[digest] = self._bars.add_task(digest[7:19], total=size)
        self._bars.update(self._tasks[digest], completed=count)


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _describe(pulled: Report) -> str:
    lazy = sum(layer["lazy"] for layer in pulled["layers"])
    return f"{pulled['image']} {pulled['digest']}: {lazy} of {len(pulled['layers'])} layers lazy"
