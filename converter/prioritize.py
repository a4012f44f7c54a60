"""What a program reads first: reads a list of paths and finds their layers.

Two kinds of list are read, line by line: plain paths in the order of their first use, and the record that ctr-remote makes
(JSON lines with a `path`). Both have the paths that the program used, so symbolic links are followed, and links and targets
are both prioritised. The layer is the topmost one that shows the path; the layer index in a record refers to the source image, in
which the file may have been in another layer.
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
    """Names by layer number, in order."""
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
    """Find `paths` in the merged tree of all layers."""
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
            pass  # a plain path that only looks like a record
    return line
