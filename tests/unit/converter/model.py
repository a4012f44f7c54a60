"""What a runtime makes of layers, told as simply as possible: the model that conversions are held against.

One difference from umoci is on purpose: a layer's whiteouts are carried out before its other entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lazyfs.format.entry import OWN_NAMES, Entry


class Refused(Exception):
    """No runtime unpacks this."""


class Node:
    """An inode."""

    def __init__(self, entry: Entry, data: bytes = b"") -> None:
        self.kind = entry.type
        self.link = entry.link if entry.type == "symlink" else b""
        self.facts = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs, entry.major, entry.minor)
        self.data = data
        self.children: dict[bytes, Node] = {}


class Model:
    """A root file system, layer by layer."""

    def __init__(self) -> None:
        self.root = Node(Entry(b"", "dir"))

    def unpack(self, members: Iterable[tuple[Entry, bytes]]) -> None:
        """Unpack one layer: its entries with their contents."""
        listed = list(members)
        for entry, _ in listed:
            parent, base = split(entry.name)
            if base.startswith(b".wh."):
                self.white_out(parent, base)
        fresh: set[int] = set()
        for entry, data in listed:
            parent, base = split(entry.name)
            if base.startswith(b".wh.") or (not parent and base in OWN_NAMES):
                continue
            if not entry.name:
                self.root.facts = Node(entry).facts
                continue
            directory = self.directory(parent, make=True)
            assert directory is not None
            if directory is self.root and base in OWN_NAMES:
                continue
            old = directory.children.get(base)
            if entry.type == "hardlink":
                there, name = split(entry.link)
                holder = self.directory(there, make=False)
                target = holder.children.get(name) if holder else None
                if target is None or id(target) not in fresh or target.kind == "dir" or (holder is directory and name == base):
                    raise Refused(entry.name)
                directory.children[base] = target
            elif old is not None and old.kind == "dir" == entry.type:
                old.facts = Node(entry).facts
            else:
                made = Node(entry, data)
                self.keep.append(made)
                fresh.add(id(made))
                directory.children[base] = made

    keep: list[Node] = []
    """Nothing is freed, so an id stays one inode's."""

    def white_out(self, parent: bytes, base: bytes) -> None:
        directory = self.directory(parent, make=False)
        if directory is None:
            return
        if base == b".wh..wh..opq":
            directory.children.clear()
        else:
            directory.children.pop(base[4:], None)

    def directory(self, path: bytes, make: bool) -> Node | None:
        """The directory at `path`, symbolic links followed, never above the root."""
        way = [self.root]
        pending = path.split(b"/")
        links = 0
        while pending:
            part = pending.pop(0)
            if part in {b"", b"."}:
                continue
            if part == b"..":
                way = way[:-1] or way
                continue
            if way[-1].kind != "dir":
                if make:
                    raise Refused(path)
                return None
            child = way[-1].children.get(part)
            if child is None:
                if not make:
                    return None
                if part.startswith(b".wh."):
                    raise Refused(path)
                child = way[-1].children[part] = Node(Entry(b"", "dir"))
            if child.kind == "symlink":
                links += 1
                if links > 255:
                    raise Refused(path)
                if child.link.startswith(b"/"):
                    way = [self.root]
                pending = child.link.split(b"/") + pending
                continue
            way.append(child)
        if way[-1].kind != "dir":
            if make:
                raise Refused(path)
            return None
        return way[-1]

    def tree(self) -> dict[bytes, Any]:
        """Everything but the root itself and the format's own names, by path; names of one inode name each other."""
        found: dict[bytes, Node] = {}
        pending = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            for base, child in node.children.items():
                if path or base not in OWN_NAMES:
                    name = path + b"/" + base if path else base
                    found[name] = child
                    if child.kind == "dir":
                        pending.append((name, child))
        names: dict[int, list[bytes]] = {}
        for name, node in found.items():
            names.setdefault(id(node), []).append(name)
        return {name: (node.kind, node.facts, node.data, node.link, sorted(names[id(node)])) for name, node in found.items()}


def split(name: bytes) -> tuple[bytes, bytes]:
    parent, _, base = name.rpartition(b"/")
    return parent, base
