"""The command line of `lazyfs convert`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec
import trio

from converter.convert import ImageSelection, convert
from converter.layer import Style
from converter.layers import Request
from converter.prioritize import read_list
from converter.progress import Progress
from converter.report import Report, table
from lazyfs.errors import UsageError, most_severe
from lazyfs.format.member import DEFAULT_LEVEL
from lazyfs.format.platform import parse_platform, this_platform
from lazyfs.format.toc import MAX_CHUNK_SIZE
from lazyfs.layertar.cut import CHUNK_SIZE, every
from lazyfs.source.credential_options import add_creds, resolve_creds
from lazyfs.source.open import AccessOptions, open_sink, open_source, parse_creds
from lazyfs.source.reference import Reference, parse_reference

_MIN_CHUNK_SIZE: Final = 4 << 10
_MAX_WORKERS: Final = 64
_SUFFIXES: Final = {"K": 10, "M": 20, "G": 30}

_DESCRIPTION: Final = """\
Rewrite an image to eStargz, so that every file of it can be fetched and verified on its own. The result is an ordinary
OCI image: `lazyfs mount` starts it at once, and every runtime can still pull it.

SRC and DST are [docker://]HOST[:PORT]/REPO[:TAG], in a registry, or oci:DIR[:TAG], in an OCI layout on disk. No daemon is
needed. Layers that already are what is asked stay as they are; what DST has already is not sent again."""

_EPILOG: Final = """\
examples:
  lazyfs convert python:3.12 docker://localhost:5000/python:3.12
  lazyfs convert oci:build:app docker://registry.example/app:1.4 --prioritize startup.txt
  lazyfs convert docker://registry.example/app:1.4 oci:app --all-platforms --json

Temporary files (the unpacked layers, the new ones) lie in TMPDIR and have no names: nothing has to be cleaned up.
The same image and options give the same digests, on any machine and with any number of workers."""


def main(argv: Sequence[str]) -> int:
    """Run `lazyfs convert` with the arguments after that; returns the exit code. Raises LazyfsError, SystemExit (from argparse)."""
    arguments = _parser().parse_args(argv)
    resolve_creds(arguments)
    source, destination = parse_reference(arguments.source), parse_reference(arguments.destination)
    accesses = _accesses(arguments, source, destination)
    request = _request(arguments)
    selection = _selection(arguments)
    with Progress(sys.stderr.isatty() and not arguments.json) as progress:
        try:
            report = trio.run(_convert, source, destination, accesses, selection, request, progress)
        except BaseExceptionGroup as group:
            raise most_severe(group) from group
    for remark in dict.fromkeys(remark for image in report.images for remark in image.left_out):
        print(f"lazyfs: warning: {remark}", file=sys.stderr)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        print("\n".join(table(report)))
    return 0


async def _convert(
    source: Reference,
    destination: Reference,
    accesses: tuple[AccessOptions, AccessOptions],
    selection: ImageSelection,
    request: Request,
    progress: Progress,
) -> Report:
    async with AsyncExitStack() as stack:
        origin = open_source(source, accesses[0])
        stack.push_async_callback(origin.aclose)
        sink = open_sink(destination, accesses[1])
        stack.push_async_callback(sink.aclose)
        return await convert(origin, source.selector, sink, destination.tag, selection, request, progress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lazyfs convert",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="the image to convert")
    parser.add_argument("destination", metavar="DST", help="where the new image goes")
    parser.add_argument(
        "--chunk-size",
        type=_size,
        default=CHUNK_SIZE,
        metavar="BYTES",
        help="larger files are cut into chunks of this size, 4K to 64M (4M): smaller ones fetch less for a read in the middle of a file, "
        "and weigh more",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=None,
        metavar="1..12",
        help=f"of compression ({DEFAULT_LEVEL}); giving it converts all layers again",
    )
    parser.add_argument(
        "--prioritize",
        type=Path,
        metavar="FILE",
        help="paths in the order in which a start needs them, one a line (or ctr-remote's record): they come first, and are prefetched",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="which image of several (default: this machine's)")
    which.add_argument("--all-platforms", action="store_true", help="all images of an index, and the index")
    parser.add_argument("--workers", type=int, metavar="N", help="compressing threads (default: one a core)")
    parser.add_argument("--force", action="store_true", help="convert layers again even if they already have the wanted form")
    parser.add_argument("--json", action="store_true", help="report as one JSON object; sizes in bytes")
    add_creds(parser, where="for the registry, instead of ~/.docker/config.json")
    add_creds(parser, "src-", "for SRC's registry, where DST's is another")
    add_creds(parser, "dst-", "for DST's registry, where SRC's is another")
    parser.add_argument("--plain-http", action="store_true", help="no TLS (loopback never uses it)")
    return parser


def _request(arguments: argparse.Namespace) -> Request:
    if not _MIN_CHUNK_SIZE <= arguments.chunk_size <= MAX_CHUNK_SIZE:
        raise UsageError(f"--chunk-size {arguments.chunk_size} is not between 4K and 64M")
    if arguments.level is not None and not 1 <= arguments.level <= 12:
        raise UsageError(f"--level {arguments.level} is not between 1 and 12")
    workers = arguments.workers if arguments.workers is not None else min(os.cpu_count() or 1, _MAX_WORKERS)
    if not 1 <= workers <= _MAX_WORKERS:
        raise UsageError(f"--workers {workers} is not between 1 and {_MAX_WORKERS}")
    style = Style(every(arguments.chunk_size), DEFAULT_LEVEL if arguments.level is None else arguments.level)
    prioritized = read_list(arguments.prioritize) if arguments.prioritize else ()
    return Request(style, prioritized, workers, keep=arguments.level is None and not arguments.force)


def _selection(arguments: argparse.Namespace) -> ImageSelection:
    if arguments.all_platforms:
        return ImageSelection(None, named=False)
    return ImageSelection(
        parse_platform(arguments.platform) if arguments.platform else this_platform(), named=bool(arguments.platform)
    )


def _accesses(arguments: argparse.Namespace, source: Reference, destination: Reference) -> tuple[AccessOptions, AccessOptions]:
    """How to access source and destination. Credentials go to one registry only, unless both are the same."""
    hosts = {reference.host for reference in (source, destination) if reference.transport == "docker"}
    if arguments.creds and len(hosts) > 1:
        raise UsageError("--creds could be for either registry", hint="Use --src-creds and --dst-creds")
    found = []
    for own in (arguments.src_creds, arguments.dst_creds):
        creds = own or arguments.creds
        found.append(AccessOptions(parse_creds(creds) if creds else None, arguments.plain_http))
    return found[0], found[1]


def _size(text: str) -> int:
    digits, shift = text, 0
    if text[-1:].upper() in _SUFFIXES:
        digits, shift = text[:-1], _SUFFIXES[text[-1:].upper()]
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 4194304, 4096K or 4M")
    return int(digits) << shift
