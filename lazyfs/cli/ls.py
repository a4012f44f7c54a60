"""List a directory of an image, or one file. Only the layers' TOCs are fetched, and nothing is mounted."""

from __future__ import annotations

import argparse
import os
import re
import stat
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

from lazyfs.cli.options import add_image, add_store
from lazyfs.cli.output import put
from lazyfs.cli.session import open_filesystem
from lazyfs.vfs.filesystem import attributes
from lazyfs.vfs.path import resolve
from lazyfs.vfs.tree import Node

_CONTROL = re.compile(rb"[\0-\x1f\x7f]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_image(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="in the image (default: its root)")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object an entry, one a line")


def run(arguments: argparse.Namespace) -> int:
    """List. Raises LazyfsError."""
    lines = trio.run(_lines, arguments)
    put(b"".join(line + b"\n" for line in lines))
    return 0


async def _lines(arguments: argparse.Namespace) -> list[bytes]:
    async with open_filesystem(arguments) as filesystem:
        node = resolve(filesystem.tree, os.fsencode(arguments.path))
        if node.children is None:
            found = [(os.fsencode(arguments.path), node)]
        else:
            found = sorted(node.children.items())
    describe = _json_line if arguments.json else _line
    return [describe(name, child) for name, child in found]


def _line(name: bytes, node: Node) -> bytes:
    shown = attributes(node)
    size = f"{shown.rdev[0]},{shown.rdev[1]}" if node.entry.type in ("char", "block") else str(shown.size)
    line = (
        f"{stat.filemode(shown.mode)} {shown.nlink:3} {shown.uid:6} {shown.gid:6} {size:>11} {_time(shown.mtime_ns)} ".encode()
        + _printable(name)
    )
    return line + b" -> " + _printable(node.entry.link) if node.entry.type == "symlink" else line


def _printable(name: bytes) -> bytes:
    """Escape control characters: the image must not control the terminal, and each entry is one line."""
    return _CONTROL.sub(lambda match: b"\\x%02x" % match[0][0], name)


def _json_line(name: bytes, node: Node) -> bytes:
    shown = attributes(node)
    values: dict[str, Any] = {
        "name": name.decode("utf-8", "backslashreplace"),
        "type": node.entry.type,
        "mode": shown.mode & 0o7777,
        "uid": shown.uid,
        "gid": shown.gid,
        "size": shown.size,
        "mtime_ns": shown.mtime_ns,
        "nlink": shown.nlink,
    }
    if node.entry.type == "symlink":
        values["link"] = node.entry.link.decode("utf-8", "backslashreplace")
    return msgspec.json.encode(values)


def _time(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"@{mtime_ns // 10**9}"
