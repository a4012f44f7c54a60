"""Pull an image into containerd, lazily: containers start at once, and what they read is fetched when they read it.

It is for containerd 1.6 and 1.7, whose `ctr images pull` does not pass a snapshotter the labels that it needs; later versions do. containerd
unpacks layers that cannot be lazy, as for ctr. Afterwards the image is like any other: ctr run, ctr images rm. A pull that failed or was
killed continues the next time.

If the lazyfsd of the state directory is running, it executes the pull, which is faster; not with --creds, nor if the environment names
proxies, certificates or a docker configuration of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Final

import msgspec

from lazyfs.cli.importing import importing
from lazyfs.cli.options import access_of, add_store, platform_of, store_of
from lazyfs.cli.progress import Display
from lazyfs.daemon.client import Client
from lazyfs.errors import LocalError, UsageError
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.credentials import config_path
from lazyfs.reports.orders import PullOrder
from lazyfs.reports.results import PullResult
from lazyfs.reports.steps import Accepted
from lazyfs.reports.wire import Refused
from lazyfs.source.credential_options import add_creds
from lazyfs.source.reference import parse_reference

_ADDRESS: Final = Path("/run/containerd/containerd.sock")
_ACCEPT_TIMEOUT: Final = 5.0
"""Seconds for lazyfsd to accept an order: its socket accepts connections also while lazyfsd does not start."""
_ENVIRONMENT: Final = ("DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("reference", metavar="REF", help="the image: HOST/REPO[:TAG][@DIGEST]; python:3.12 for Docker Hub's")
    parser.add_argument("--address", metavar="SOCKET", type=Path, default=_ADDRESS, help=f"containerd's (default: {_ADDRESS})")
    parser.add_argument("--namespace", metavar="NAME", default="default", help="containerd's; CRI's is k8s.io (default: default)")
    parser.add_argument("--snapshotter", metavar="NAME", default="lazyfs", help="what containerd calls lazyfsd (default: lazyfs)")
    parser.add_argument("--platform", metavar="OS/ARCH", help="which image of several (default: this machine's)")
    add_creds(parser, where="for this pull, instead of ~/.docker/config.json")
    parser.add_argument("--plain-http", action="store_true", help="no TLS (loopback never uses it)")
    parser.add_argument(
        "--complete", action="store_true", help="fetch the blobs of lazy layers as well: export, push and check need them"
    )
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Pull. Raises LazyfsError."""
    reference = parse_reference(arguments.reference)
    if reference.transport != "docker":
        raise UsageError(
            f"{reference} is not an image in a registry: lazyfsd could not fetch what is missing",
            hint="Push it to one: lazyfs convert or skopeo copy",
        )
    order = PullOrder(
        reference=arguments.reference,
        platform=str(platform_of(arguments)),
        address=str(arguments.address.absolute()),
        namespace=arguments.namespace,
        snapshotter=arguments.snapshotter,
        plain_http=arguments.plain_http,
        complete=arguments.complete,
    )
    with Display() as display:
        pulled = None if arguments.creds or _has_own_environment() else _pull_by_lazyfsd(store_of(arguments), order, display)
        pulled = pulled or _pull_in_process(order, access_of(arguments), display)
    if arguments.creds:
        print(
            "lazyfs: --creds was for this pull: lazyfsd fetches with what root's docker login left, and layers fall back without it",
            file=sys.stderr,
        )
    where = {"namespace": arguments.namespace, "snapshotter": arguments.snapshotter}
    print(json.dumps({**msgspec.to_builtins(pulled), **where}) if arguments.json else _describe(pulled), flush=True)
    return 0


def _pull_by_lazyfsd(store: Path, order: PullOrder, display: Display) -> PullResult | None:
    """None if lazyfsd did not accept the order: it does not run, has too many pulls, or is an older version. Raises Refused for a failed pull."""
    accepted = False
    try:
        for report in Client(store, _ACCEPT_TIMEOUT, only_first=True).call(order, start=False):
            if isinstance(report, PullResult):
                return report
            accepted = accepted or isinstance(report, Accepted)
            display.show(report)
    except Refused:
        if accepted:
            raise
    except LocalError:
        pass
    return None


def _has_own_environment() -> bool:
    """Whether this process has proxies, certificates or credentials that lazyfsd does not have."""
    if any(os.environ.get(name) for each in _ENVIRONMENT for name in (each, each.lower())):
        return True
    own = config_path()
    return own.parents[1] != Path(pwd.getpwuid(os.geteuid()).pw_dir) and own.exists()


def _pull_in_process(order: PullOrder, access: AccessOptions, display: Display) -> PullResult:
    with importing():
        import trio

        from lazyfs.daemon.pulling import import_pull_modules, pull_image

        import_pull_modules()
    result: PullResult = trio.run(pull_image, order, access, display.show)
    return result


def _describe(pulled: PullResult) -> str:
    lazy = sum(layer.lazy for layer in pulled.layers)
    return f"{pulled.image} {pulled.digest}: {lazy} of {len(pulled.layers)} layers lazy"
