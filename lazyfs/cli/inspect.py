"""Show for each layer whether it can be mounted lazily, or why not: its format, size, entries, chunks, TOC digest, landmark.

Nothing is stored. The exit code is 0 if the whole image can be mounted lazily, 3 if not.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import msgspec
import trio

from lazyfs.cli.options import add_image
from lazyfs.cli.output import put
from lazyfs.cli.session import open_image
from lazyfs.errors import LazyfsError, NotLazy, SourceError
from lazyfs.format.manifest import Descriptor
from lazyfs.image.image import all_of
from lazyfs.image.layer import Layer, Toc, load_layer
from lazyfs.source.protocol import ImageSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Inspect. Raises LazyfsError if the image cannot be resolved."""
    report = trio.run(_inspect, arguments)
    if arguments.json:
        put(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    else:
        _print_table(report)
    return 0 if report["lazy"] else NotLazy.exit_code


async def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    async with open_image(arguments, None) as (source, image):
        results = await all_of([partial(_load, source, descriptor) for descriptor in image.layers])
    layers = [_describe(descriptor, result) for descriptor, result in zip(image.layers, results, strict=True)]
    return {
        "image": image.name,
        "platform": str(image.config.platform),
        "lazy": all(layer["lazy"] for layer in layers),
        "size": sum(descriptor.size for descriptor in image.layers),
        "layers": layers,
    }


async def _load(source: ImageSource, descriptor: Descriptor) -> tuple[Layer, int]:
    """A layer, and the size of its compressed TOC."""
    loaded: list[Toc] = []
    layer = await load_layer(source, None, descriptor, in_store=loaded.append)
    return layer, loaded[0].arrived


def _describe(descriptor: Descriptor, result: tuple[Layer, int] | LazyfsError) -> dict[str, Any]:
    head: dict[str, Any] = {"digest": descriptor.digest, "size": descriptor.size, "media_type": descriptor.media_type}
    if isinstance(result, SourceError):
        raise result
    if isinstance(result, LazyfsError):
        reason = result.message.removeprefix(f"layer {descriptor.digest} ")
        return head | {"lazy": False, "reason": reason, "format": "ordinary" if isinstance(result, NotLazy) else "broken"}
    layer, toc_size = result
    return head | {
        "lazy": True,
        "format": layer.dialect.name,
        "entries": len(layer.entries),
        "chunks": sum(len(entry.chunks) for entry in layer.entries),
        "toc_digest": layer.toc_digest,
        "toc_size": toc_size,
        "landmark": layer.landmark,
    }


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("layer", "size MB", "format", "entries", "chunks", "landmark", "TOC digest, or why it is not lazy")
    for number, layer in enumerate(report["layers"], 1):
        more = [layer["format"], *(str(layer.get(key, "")) for key in ("entries", "chunks", "landmark"))]
        # As Text: foreign text may look like rich's markup.
        last = Text(layer.get("toc_digest") or layer["reason"])
        table.add_row(str(number), f"{layer['size'] / 1e6:.1f}", *more, last)
    console = Console(width=None if sys.stdout.isatty() else 200)
    with console.capture() as shown:
        console.print(table)
    put(f"{report['image']}  {report['platform']}  {report['size'] / 1e6:.1f} MB\n{shown.get()}")
