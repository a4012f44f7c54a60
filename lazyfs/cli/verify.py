"""Check everything about an image, from its manifest to its last chunk.

Every blob is downloaded and compared with its digest, its tar with its diff ID, its TOC with the manifest, every chunk with the TOC, and
the tree of the TOC with the tree of the tar: an image that shows one thing lazily and another in a full pull fails, and the path is
named. Nothing is stored. The exit code is 3 if something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec
import trio

from lazyfs.cli.options import add_image
from lazyfs.cli.output import put
from lazyfs.cli.session import open_image
from lazyfs.errors import InvalidInput
from lazyfs.verify.image import ImageFindings, verify_image

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Verify. Raises LazyfsError if the image cannot be fetched."""
    name, findings = trio.run(_verify, arguments)
    if arguments.json:
        put(msgspec.json.encode(_report(name, findings)) + b"\n")
    else:
        for problem in findings.problems[:_SHOWN]:
            print(f"lazyfs: {problem}", file=sys.stderr)
        if len(findings.problems) > _SHOWN:
            print(f"lazyfs: and {len(findings.problems) - _SHOWN} more problems (--json lists all)", file=sys.stderr)
        if not findings.problems:
            entries, chunks = sum(len(layer.entries) for layer in findings.layers), sum(layer.chunks for layer in findings.layers)
            lazy = "" if findings.lazy else "; it is not lazily mountable (lazyfs inspect says why)"
            print(f"{name} is sound: {len(findings.layers)} layers, {entries} entries, {chunks} chunks{lazy}")
    return InvalidInput.exit_code if findings.problems else 0


async def _verify(arguments: argparse.Namespace) -> tuple[str, ImageFindings]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    async with open_image(arguments, None) as (source, image):
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("verifying", total=sum(descriptor.size for descriptor in image.layers))
            return image.name, await verify_image(source, image, lambda count: bar.advance(task, count))


def _report(name: str, findings: ImageFindings) -> dict[str, Any]:
    layers = [
        {"lazy": layer.lazy, "entries": len(layer.entries), "chunks": layer.chunks, "problems": layer.problems}
        for layer in findings.layers
    ]
    return {"image": name, "sound": not findings.problems, "lazy": findings.lazy, "problems": findings.problems, "layers": layers}
