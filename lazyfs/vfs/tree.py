"""The merged tree of an image: the nodes that overlayfs would show, in memory.

Inode numbers are a pure function of the image: layer by layer, position in the TOC. They do not depend on file contents: two equal files
with different owners are two inodes (else the kernel would show one owner for both). Every process that merges the same layers
derives the same numbers. The root is 1; directories that no layer names come after all others.

Whiteouts and opaque markers apply to the layers below, wherever they are in the TOC, and never to names of their own layer. A
character device 0:0 hides its name and is not shown: overlayfs treats it as a whiteout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from lazyfs.format.entry import OPAQUE_MARKER, OWN_NAMES, WHITEOUT_PREFIX, Entry, base_of, parent_of
from lazyfs.format.whiteout import AUFS_PREFIX, is_whiteout_device
from lazyfs.format.xattr import has_acl, shown_xattrs

ROOT_INO: Final = 1
_OVERLAY_XATTRS: Final = b"trusted.overlay."


class Node:
    """One inode."""

    __slots__ = ("children", "entry", "ino", "layer", "nlink", "parent")

    def __init__(self, ino: int, entry: Entry, layer: int, parent: Node | None) -> None:
        self.ino = ino
        self.entry = entry
        self.layer = layer
        """Index of the layer that `entry` is from."""
        self.parent = parent
        """Set for directories; the root is its own parent."""
        self.children: dict[bytes, Node] | None = {} if entry.type == "dir" else None
        self.nlink = 0


def _shown(entry: Entry) -> Entry:
    """`entry` with the xattrs that a mount shows. overlayfs never shows its own attributes and obeys them in its layers, and an image must
    not redirect an overlay on top of this mount."""
    if not entry.xattrs:
        return entry
    xattrs = tuple(item for item in shown_xattrs(entry) if not item[0].startswith(_OVERLAY_XATTRS))
    return msgspec.structs.replace(entry, xattrs=xattrs)


def _is_hiding(entry: Entry) -> bool:
    return is_whiteout_device(entry.type, entry.major, entry.minor)


class Tree:
    """All nodes of an image, by path and by inode number. Immutable once merged."""

    def __init__(self, layers: Sequence[Sequence[Entry]]) -> None:
        """Merge `layers`, the lowest first. Costs about 3 µs an entry."""
        self.root = Node(ROOT_INO, Entry(b"", "dir"), 0, None)
        self.root.parent = self.root
        self.replaced: list[tuple[int, bytes]] = []
        """(layer, path) of names that are not directories in the layers below but that a layer implies to be directories."""
        base = ROOT_INO + 1
        self._implied = base + sum(len(layer) for layer in layers)
        for index, layer in enumerate(layers):
            self._merge(layer, index, base)
            base += len(layer)
        self.nodes: dict[int, Node] = {}
        """Every node that is shown, by inode number."""
        self.size = 0
        """Bytes of all regular files, each inode once."""
        self.has_acls = False
        """Whether any file has an ACL, so that the kernel has to ask for them."""
        self._count()

    def find(self, path: bytes) -> Node | None:
        """The node at a clean path; symbolic links are not followed."""
        node: Node | None = self.root
        for part in path.split(b"/") if path else ():
            if node is None or node.children is None:
                return None
            node = node.children.get(part)
        return node

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """(path, node) of everything, parents first, the root as `b""`."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                stack.extend((prefix + name, child) for name, child in reversed(node.children.items()))

    def _merge(self, layer: Sequence[Entry], index: int, base: int) -> None:
        self._hide(layer, index)
        directories: dict[bytes, Node] = {b"": self.root}
        named: dict[bytes, Node] = {}
        for position, entry in enumerate(map(_shown, layer)):
            parent_name, _, name = entry.name.rpartition(b"/")
            if name.startswith(WHITEOUT_PREFIX) or entry.name in OWN_NAMES:
                continue
            if not name:
                self.root.entry, self.root.layer = entry, index
                continue
            parent = directories.get(parent_name) or self._directory(parent_name, directories, index)
            assert parent.children is not None
            if entry.type == "dir":
                below = parent.children.get(name)
                node = Node(base + position, entry, index, parent)
                if below is not None and below.children is not None:
                    node.children = below.children
                    for child in below.children.values():
                        if child.children is not None:
                            child.parent = node
                directories[entry.name] = node
            elif entry.type == "hardlink":
                target = named.get(entry.link)
                if target is None:
                    continue  # parse_toc allows no such link; if the target is a landmark or a whiteout, it is not shown
                node = target
            elif entry.type == "char" and _is_hiding(entry):
                continue
            else:
                node = Node(base + position, entry, index, None)
            named[entry.name] = node
            parent.children[name] = node

    def _hide(self, layer: Sequence[Entry], index: int) -> None:
        devices: set[bytes] = set()
        for entry in layer:
            parent_name, _, name = entry.name.rpartition(b"/")
            if _is_hiding(entry) if entry.type == "char" else entry.type == "hardlink" and entry.link in devices:
                devices.add(entry.name)
                self._remove(entry.name)
            if not name.startswith(WHITEOUT_PREFIX):
                continue
            parent = self.find(parent_name)
            if parent is None or parent.children is None:
                if parent is not None:
                    self.replaced.append((index, parent_name))
                continue
            if name == OPAQUE_MARKER:
                parent.children.clear()
            elif not name.startswith(AUFS_PREFIX):
                parent.children.pop(name[len(WHITEOUT_PREFIX) :], None)

    def _remove(self, name: bytes) -> None:
        parent = self.find(parent_of(name))
        if parent is not None and parent.children is not None:
            parent.children.pop(base_of(name), None)

    def _directory(self, path: bytes, directories: dict[bytes, Node], index: int) -> Node:
        """The directory at `path` that a layer implies: the one from below, or else a new one (0755, owned by root)."""
        missing = []
        while (node := directories.get(path)) is None:
            missing.append(path)
            path = parent_of(path)
        for name in reversed(missing):
            assert node.children is not None
            known = node.children.get(base_of(name))
            if known is None or known.children is None:
                if known is not None:
                    self.replaced.append((index, name))
                known = Node(self._implied, Entry(name, "dir"), index, node)
                self._implied += 1
                node.children[base_of(name)] = known
            node = directories[name] = known
        return node

    def _count(self) -> None:
        stack = [self.root]
        self.nodes[ROOT_INO] = self.root
        self.has_acls = has_acl(self.root.entry)
        self.root.nlink = 2
        while stack:
            directory = stack.pop()
            for child in directory.children.values() if directory.children else ():
                if child.children is not None:
                    child.nlink = 2
                    directory.nlink += 1
                    stack.append(child)
                else:
                    child.nlink += 1
                    if child.nlink == 1:
                        self.size += child.entry.size
                self.nodes[child.ino] = child
                if child.entry.xattrs:
                    self.has_acls = self.has_acls or has_acl(child.entry)
