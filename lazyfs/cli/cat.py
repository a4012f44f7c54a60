"""Print one file of an image. Only that file's chunks are fetched, and each is verified before a byte of it is printed."""

from __future__ import annotations

import argparse
import os

import trio

from lazyfs.cli.options import add_image, add_store
from lazyfs.cli.output import put
from lazyfs.cli.session import open_filesystem
from lazyfs.errors import LazyfsError
from lazyfs.vfs.path import resolve

_STEP = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("path", metavar="PATH", help="a file in the image; symbolic links are followed inside of it")
    add_store(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print. Raises LazyfsError."""
    trio.run(_print, arguments)
    return 0


async def _print(arguments: argparse.Namespace) -> None:
    async with open_filesystem(arguments) as filesystem:
        node = resolve(filesystem.tree, os.fsencode(arguments.path))
        if node.entry.type != "reg":
            raise LazyfsError(f"{arguments.path} is a {node.entry.type}, not a regular file")
        for offset in range(0, node.entry.size, _STEP):
            data = await filesystem.read(node.ino, offset, _STEP)
            await trio.to_thread.run_sync(put, bytes(data))
