"""What the layers up to some height show together: enough of it to place the next layer's entries.

A layer cannot be converted by itself. Its entries may lie in directories that only a layer below describes, or be reached
through a symbolic link below. Runtimes resolve that while they unpack; a layer that is mounted lazily is never
unpacked, so the converter resolves it, and writes out what it found.
"""

from __future__ import annotations

from typing import NamedTuple

from lazyfs.errors import InvalidTar
from lazyfs.format.entry import WHITEOUT_PREFIX, Entry
from lazyfs.format.toc import show

_MAX_LINKS = 255
"""As many symbolic links on one way as the SecureJoin of Go's runtimes follows."""


class Node:
    """One name in the merged tree. `layer` is the topmost layer whose tar holds it."""

    __slots__ = ("children", "entry", "layer")

    def __init__(self, entry: Entry, layer: int) -> None:
        self.entry = entry
        self.layer = layer
        self.children: dict[bytes, Node] | None = {} if entry.type == "dir" else None


class Way(NamedTuple):
    """Where a path leads."""

    name: bytes
    """The clean name without symbolic links on it; of what is missing, as far as it goes."""
    node: Node | None
    """None where nothing is there."""
    links: tuple[tuple[bytes, Node], ...]
    """The symbolic links on the way, under their own names."""


class Tree:
    """The merged tree. Layers are put on it from the lowest up."""

    def __init__(self) -> None:
        self.root = Node(Entry(b"", "dir"), -1)

    def follow(self, path: bytes) -> Way:
        """Where `path` leads, its last component followed as well; a circle leads nowhere. Nothing climbs above the root."""
        return self._follow(path, "", None)

    def make(self, path: bytes, layer: int, what: str) -> Way:
        """The same of a directory, which is made where it is missing, with the parents that it needs: root's, 0755.

        Raises InvalidTar, naming `what`, where something else stands in the way.
        """
        return self._follow(path, what, layer)

    def _follow(self, path: bytes, what: str, layer: int | None) -> Way:
        pending = path.split(b"/")[::-1]
        names: list[bytes] = []
        nodes = [self.root]
        links: list[tuple[bytes, Node]] = []
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if names:
                    names.pop()
                    nodes.pop()
                continue
            children = nodes[-1].children
            if children is None:
                if layer is not None:
                    raise InvalidTar(
                        f"{what}: {show(path)} should be a directory, and {show(b'/'.join(names))} is a {nodes[-1].entry.type}"
                    )
                return Way(b"/".join(names), None, tuple(links))
            child = children.get(part)
            names.append(part)
            if child is None:
                if layer is None:
                    return Way(b"/".join(names), None, tuple(links))
                if part.startswith(WHITEOUT_PREFIX):
                    raise InvalidTar(f"{what}: {show(path)} lies in a whiteout")
                child = children[part] = Node(Entry(b"/".join(names), "dir"), layer)
            elif child.entry.type == "symlink":
                links.append((b"/".join(names), child))
                if len(links) > _MAX_LINKS:
                    if layer is None:
                        return Way(b"/".join(names), None, tuple(links))
                    raise InvalidTar(f"{what}: {show(path)} leads through more than {_MAX_LINKS} symbolic links")
                target = child.entry.link
                names.pop()
                if target.startswith(b"/"):
                    names.clear()
                    del nodes[1:]
                pending += target.split(b"/")[::-1]
                continue
            nodes.append(child)
        if layer is not None and nodes[-1].children is None:
            raise InvalidTar(f"{what}: {show(path)} should be a directory, and is a {nodes[-1].entry.type}")
        return Way(b"/".join(names), nodes[-1], tuple(links))
