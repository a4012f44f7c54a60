"""The merged tree of the layers below the one being unpacked: enough of it to place that layer's entries.

A layer cannot be described on its own. Its entries may be in directories that only a lower layer describes, or behind a symbolic
link in a lower layer. Runtimes resolve that while they unpack. A lazy layer is never unpacked, so the converter (and lazyfs for an
eager layer) resolves it and writes the result into the TOC.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lazyfs.errors import InvalidTar, show
from lazyfs.format.bounds import ENTRY, UNBOUNDED, Bounds
from lazyfs.format.entry import OPAQUE_MARKER, OWN_NAMES, WHITEOUT_PREFIX, Entry
from lazyfs.format.toc import MAX_NAME
from lazyfs.format.whiteout import is_whiteout_device, name_kind

_MAX_LINKS = 255
"""The number of symbolic links in one path that the SecureJoin of Go's runtimes follows."""


class Node:
    """One name in the merged tree. `layer` is the topmost layer whose tar holds it."""

    __slots__ = ("children", "entry", "layer")

    def __init__(self, entry: Entry, layer: int) -> None:
        self.entry = entry
        self.layer = layer
        self.children: dict[bytes, Node] | None = {} if entry.type == "dir" else None


class ResolvedPath(NamedTuple):
    """Where a path leads."""

    name: bytes
    """The clean name without symbolic links, whether or not it exists."""
    node: Node | None
    """None if nothing is there."""
    links: tuple[tuple[bytes, Node], ...]
    """The symbolic links that were followed, under their own names."""


class LowerTree:
    """The merged tree of the lower layers. Layers are added from the lowest up."""

    def __init__(self) -> None:
        self.root = Node(Entry(b"", "dir"), -1)

    def resolve(self, path: bytes, bounds: Bounds = UNBOUNDED) -> ResolvedPath:
        """Resolve `path`, following symbolic links in its last component too. A loop resolves to nothing. Steps are charged to `bounds`.

        As in Go's runtimes `..` stops at the root, and works after missing components too.
        """
        bounds.step(1 + path.count(b"/"))
        names: list[bytes] = []
        nodes: list[Node | None] = [self.root]
        links: list[tuple[bytes, Node]] = []
        pending = path.split(b"/")[::-1]
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if names:
                    names.pop()
                    nodes.pop()
                continue
            here = nodes[-1]
            child = here.children.get(part) if here is not None and here.children is not None else None
            if child is not None and child.entry.type == "symlink":
                target = child.entry.link
                bounds.step(1 + len(names) + target.count(b"/"))
                links.append((b"/".join([*names, part]), child))
                if len(links) > _MAX_LINKS:
                    return ResolvedPath(path, None, tuple(links))
                if target.startswith(b"/"):
                    names.clear()
                    del nodes[1:]
                pending += target.split(b"/")[::-1]
                continue
            names.append(part)
            nodes.append(child)
        return ResolvedPath(b"/".join(names), nodes[-1], tuple(links))

    def make(self, path: bytes, layer: int, what: str, bounds: Bounds = UNBOUNDED) -> tuple[bytes, Node] | None:
        """The directory at `path`, under its real name. If missing it is created with its parents, owned by root, mode 0755.

        None if the name is below a whiteout's, where it is never shown. Raises InvalidTar, naming `what`, if something that is not a
        directory is in the way or the name is longer than PATH_MAX.
        """
        resolved = self.resolve(path, bounds)
        if len(resolved.links) > _MAX_LINKS:
            raise InvalidTar(f"{what}: {show(path)} leads through more than {_MAX_LINKS} symbolic links")
        if resolved.node is not None and resolved.node.children is not None:
            return resolved.name, resolved.node
        if name_kind(resolved.name) != "shown":
            return None
        if len(resolved.name) > MAX_NAME:
            raise InvalidTar(f"{what}: {show(path)} leads to a name of {len(resolved.name)} bytes, more than {MAX_NAME}")
        node = self.root
        done: list[bytes] = []
        for part in resolved.name.split(b"/"):
            done.append(part)
            assert node.children is not None
            child = node.children.get(part)
            if child is None:
                name = b"/".join(done)
                bounds.describe(ENTRY + len(name))
                child = node.children[part] = Node(Entry(name, "dir"), layer)
            elif child.children is None:
                raise InvalidTar(
                    f"{what}: {show(path)} should be a directory, and {show(child.entry.name)} is a {child.entry.type}"
                )
            node = child
        return resolved.name, node

    def put(self, entries: Iterable[Entry], layer: int) -> None:
        """Add a layer that has a TOC: names are taken literally, as in a mount (lazyfs/vfs/tree.py)."""
        listed = [(entry, *entry.name.rpartition(b"/")[::2]) for entry in entries]
        for _, parent, base in listed:
            directory = self._at(parent) if base.startswith(WHITEOUT_PREFIX) else None
            if directory is not None and directory.children is not None:
                if base == OPAQUE_MARKER:
                    directory.children.clear()
                else:
                    directory.children.pop(base[len(WHITEOUT_PREFIX) :], None)
        named: dict[bytes, Entry] = {}
        for entry, parent, base in listed:
            if base.startswith(WHITEOUT_PREFIX) or entry.name in OWN_NAMES:
                continue
            if not base:
                self.root.entry, self.root.layer = entry, layer
                continue
            shown = named.get(entry.link) if entry.type == "hardlink" else entry
            if shown is None:
                continue  # a link to a whiteout or a landmark is not shown
            named[entry.name] = shown
            children = self._make_exact(parent, layer).children
            assert children is not None
            if is_whiteout_device(shown.type, shown.major, shown.minor):
                children.pop(base, None)
                continue
            below = children.get(base)
            node = children[base] = Node(shown, layer)
            if node.children is not None and below is not None and below.children is not None:
                node.children = below.children

    def _at(self, path: bytes) -> Node | None:
        node: Node | None = self.root
        for part in path.split(b"/") if path else ():
            node = node.children.get(part) if node is not None and node.children is not None else None
        return node

    def _make_exact(self, path: bytes, layer: int) -> Node:
        """The directory with exactly this name; replaces anything else there."""
        node = self.root
        done: list[bytes] = []
        for part in path.split(b"/") if path else ():
            done.append(part)
            assert node.children is not None
            child = node.children.get(part)
            if child is None or child.children is None:
                child = node.children[part] = Node(Entry(b"/".join(done), "dir"), layer)
            node = child
        return node
