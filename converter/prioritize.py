"""What a program reads first: a list of paths, and the layers in which they are found.

Two kinds of list are read, line by line: plain paths in the order of their first use, and the record that ctr-remote makes
(JSON lines with a `path`). Both name what the program asked for, so symbolic links are followed: the links, and what they lead to,
are wanted alike. The layer is the topmost one that shows the path; a record's own layer index speaks about the source
image, in which the file may have been somewhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from lazyfs.errors import UsageError
from lazyfs.format.bounds import Bounds
from lazyfs.layertar.tree import LowerTree

_MAX_LIST: Final = 64 << 20


class _Record(msgspec.Struct):
    path: str


class Prioritized(NamedTuple):
    """Where the paths of a list are."""

    layers: dict[int, list[bytes]]
    """By layer number: names in it, the first first."""
    missing: tuple[bytes, ...]


def read_list(path: Path) -> tuple[bytes, ...]:
    """The paths in the file, each once. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_LIST + 1)
    except OSError as error:
        raise UsageError(f"cannot read the list of paths {path}: {error.strerror}") from error
    if len(data) > _MAX_LIST:
        raise UsageError(f"the list of paths {path} has more than {_MAX_LIST} bytes")
    return tuple(dict.fromkeys(found for line in data.splitlines() if (found := _path(line.strip()))))


def find(paths: Sequence[bytes], tree: LowerTree) -> Prioritized:
    """Where `paths` lead in the merged tree of all layers."""
    layers: dict[int, list[bytes]] = {}
    missing = []
    bounds = Bounds(0, "the list of paths to prioritize")
    for path in paths:
        resolved = tree.resolve(path, bounds)
        if resolved.node is None:
            missing.append(path)
            continue
        for name, link in resolved.links:
            layers.setdefault(link.layer, []).append(name)
        if resolved.name:
            layers.setdefault(resolved.node.layer, []).append(resolved.name)
    return Prioritized(layers, tuple(missing))


def _path(line: bytes) -> bytes:
    if line.startswith(b"{"):
        try:
            return msgspec.json.decode(line, type=_Record).path.encode()
        except (msgspec.DecodeError, UnicodeError):
            pass  # a file may be called so
    return line
