"""What umoci makes of layers, as simply as possible: the model that conversions are compared with."""

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
        self.keep: list[Node] = []
        """Nothing is freed, so an id stays one inode's."""

    def unpack(self, members: Iterable[tuple[Entry, bytes]]) -> None:
        """Unpack one layer: its entries with their contents."""
        fresh: set[int] = set()
        upper: set[bytes] = set()
        for entry, data in members:
            parent, base = split(entry.name)
            if base.startswith(b".wh."):
                self.white_out(parent, base, upper)
                continue
            if not parent and base in OWN_NAMES:
                continue
            if not entry.name:
                self.root.facts = Node(entry).facts
                continue
            path = [*self.real(parent), base]
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
            upper |= {b"/".join(path[:depth]) for depth in range(1, len(path) + 1)}

    def white_out(self, parent: bytes, base: bytes, upper: set[bytes]) -> None:
        """Remove what is not in `upper`: the paths of this layer but for whiteouts, and their parents."""
        directory = self.directory(parent, make=False)
        if directory is None:
            return
        names = self.real(parent)
        if base == b".wh..wh..opq":
            self.remove(names, directory, list(directory.children), upper)
        elif base[4:] in directory.children:
            self.remove(names, directory, [base[4:]], upper)

    def remove(self, names: list[bytes], directory: Node, bases: list[bytes], upper: set[bytes]) -> None:
        for base in bases:
            path = [*names, base]
            child = directory.children[base]
            if b"/".join(path) not in upper:
                del directory.children[base]
            elif child.kind == "dir":
                self.remove(path, child, list(child.children), upper)

    def directory(self, path: bytes, make: bool) -> Node | None:
        """The directory at `path`, symbolic links followed, never above the root."""
        try:
            names = self.real(path)
        except Refused:
            if make:
                raise
            return None
        for depth in range(1, len(names) + 1):
            here = self.at(names[:depth])
            if here is None and make:
                if names[depth - 1].startswith(b".wh."):
                    raise Refused(path)
                parent = self.at(names[: depth - 1])
                assert parent is not None
                parent.children[names[depth - 1]] = Node(Entry(b"", "dir"))
            elif here is None or here.kind != "dir":
                if make:
                    raise Refused(path)
                return None
        return self.at(names)

    def real(self, path: bytes) -> list[bytes]:
        """Where a path leads, name by name; what is missing is taken as it is spelled."""
        names: list[bytes] = []
        pending = path.split(b"/")
        links = 0
        while pending:
            part = pending.pop(0)
            if part in {b"", b"."}:
                continue
            if part == b"..":
                names = names[:-1]
                continue
            child = self.at([*names, part])
            if child is None or child.kind != "symlink":
                names.append(part)
                continue
            links += 1
            if links > 255:
                raise Refused(path)
            names = [] if child.link.startswith(b"/") else names
            pending = child.link.split(b"/") + pending
        return names

    def at(self, names: list[bytes]) -> Node | None:
        """What is under these names, one by one."""
        here: Node | None = self.root
        for name in names:
            here = here.children.get(name) if here else None
        return here

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
