"""The outline of one layer as overlayfs reads it: directories with children, whiteouts, opaque directories.

Names mean the same as in the merged tree (lazyfs/vfs/tree.py), but each layer is translated on its own, because overlayfs does the
merging:

    .wh.X, and no X here       a whiteout named X (character device 0:0)
    .wh.X beside a directory X X is opaque: it shows nothing from below
    .wh.X beside another X     nothing: X covers the name below anyway
    .wh..wh..opq               the directory is opaque; it keeps its attributes
    char device 0:0            a whiteout, as overlayfs treats it in an unpacked layer too: it cannot be shown as a device

A directory that a layer implies but does not name takes its attributes from the layers below: `inherited` has them. One
implied only by whiteouts exists only if there is something to hide, that is, if `inherited` has it.

No layer may have an object's name in its root: overlayfs looks for a file's data in the lower layers before the data layers,
and would use a base image's `/sha256-…` as the bytes of a file in a layer above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lazyfs.errors import InvalidToc, show
from lazyfs.format.entry import OPAQUE_MARKER, OWN_NAMES, WHITEOUT_PREFIX, Entry, base_of, parent_of
from lazyfs.format.whiteout import AUFS_PREFIX, is_whiteout_device
from lazyfs.store.content import SEVERAL, SINGLE

_OBJECTS: Final = (SINGLE.encode(), SEVERAL.encode())


class Inode:
    """Anything but a directory: one inode with one name or several."""

    __slots__ = ("entry", "nid", "nlink")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.nlink = 1
        self.nid = 0
        """Its number in the image; 0 until it has a place."""


class Directory:
    """One directory, named by the layer or implied."""

    __slots__ = ("children", "entry", "fresh", "nid", "opaque", "path", "whiteouts")

    def __init__(self, path: bytes, entry: Entry | None) -> None:
        self.path = path
        self.entry = entry
        """None if the layer does not name it."""
        self.children: dict[bytes, Inode | Directory] = {}
        self.whiteouts: set[bytes] = set()
        self.opaque = False
        self.fresh = False
        """Whether the layer whites out this name: then it is a new directory with the same name and inherits nothing."""
        self.nid = 0


class Outline:
    """A layer's directories, by path and as a tree."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Costs about 1 µs an entry. Raises InvalidToc if a name needs a file to be a directory."""
        self.root = Directory(b"", None)
        self.directories: dict[bytes, Directory] = {b"": self.root}
        self._markers: list[tuple[bytes, bytes]] = []
        """(directory, name without the prefix) of whiteouts; the marker of opaque directories as `b""`."""
        self._read(entries)
        self._refuse_objects()
        self._whited = {parent + b"/" + name if parent else name for parent, name in self._markers if name}
        self._opaque = {parent for parent, name in self._markers if not name}
        self._hides = {b"": False}
        for path in self._whited:
            if (directory := self.directories.get(path)) is not None:
                directory.fresh = directory.opaque = True
        for path in self._opaque:
            if (directory := self.directories.get(path)) is not None:
                directory.opaque = True

    def implied(self) -> tuple[bytes, ...]:
        """Paths of directories that the layer needs and does not name, and whose attributes come from below. Sorted."""
        needed = {parent for parent, _ in self._markers}
        for path in tuple(needed):
            while path and (path := parent_of(path)) not in needed:
                needed.add(path)
        needed.update(self.directories)
        return tuple(sorted(path for path in needed if not self._is_named(path) and not self._hidden(path)))

    def complete(self, inherited: Mapping[bytes, Entry]) -> None:
        """Add whiteouts, and give implied directories the attributes in `inherited` (path -> entry of the merged tree below). To be
        called once."""
        for parent, name in self._markers:
            directory = self.directories.get(parent)
            if directory is None:
                below = inherited.get(parent)
                if below is None or below.type != "dir" or self._hidden(parent):
                    continue
                directory = self._imply(parent)
            if not name:
                directory.opaque = True
            elif name not in directory.children:
                directory.whiteouts.add(name)
        for path, directory in self.directories.items():
            if directory.entry is None:
                below = None if self._hidden(path) else inherited.get(path)
                directory.entry = below if below is not None and below.type == "dir" else Entry(path, "dir")

    def _is_named(self, path: bytes) -> bool:
        directory = self.directories.get(path)
        return directory is not None and directory.entry is not None

    def _hidden(self, path: bytes) -> bool:
        """Whether the layer hides `path` of the layers below. Cached: a path may be two thousand names deep."""
        unknown = []
        while path not in self._hides:
            unknown.append(path)
            path = parent_of(path)
        hidden = self._hides[path]
        for path in reversed(unknown):
            hidden = hidden or path in self._whited or parent_of(path) in self._opaque
            self._hides[path] = hidden
        return hidden

    def _read(self, entries: Sequence[Entry]) -> None:
        directories = self.directories
        inodes: dict[bytes, Inode] = {}
        devices_0_0: set[bytes] = set()
        for entry in entries:
            path = entry.name
            parent, _, name = path.rpartition(b"/")
            if name.startswith(WHITEOUT_PREFIX):
                self._mark(parent, name)
                continue
            if path in OWN_NAMES:
                continue
            kind = entry.type
            if not name:
                if kind != "dir":
                    raise InvalidToc(f"the layer's root is a {kind}")
                self.root.entry = entry
                continue
            directory = directories.get(parent) or self._imply(parent)
            children = directory.children
            if kind == "dir":
                known = directories.get(path)
                if known is not None:
                    known.entry = entry
                    continue
                if name in children:
                    raise _both(path)
                children[name] = directories[path] = Directory(path, entry)
                continue
            if name in children:
                raise _both(path)
            if kind == "hardlink":
                target = inodes.get(entry.link)
                if target is not None:
                    target.nlink += 1
                    children[name] = target
                elif entry.link in devices_0_0:
                    directory.whiteouts.add(name)
                # else its target is a landmark or a whiteout, which is not shown: parse_toc allows no other
            elif kind == "char" and is_whiteout_device(kind, entry.major, entry.minor):
                devices_0_0.add(path)
                directory.whiteouts.add(name)
            else:
                children[name] = inodes[path] = Inode(entry)

    def _refuse_objects(self) -> None:
        for name in (*self.root.children, *self.root.whiteouts, *(name for parent, name in self._markers if not parent)):
            if name.startswith(_OBJECTS):
                raise InvalidToc(
                    f"the layer has {show(name)} in its root, where native mounts look for files' data",
                    hint="A portable mount (--mode portable) shows it.",
                )

    def _mark(self, parent: bytes, name: bytes) -> None:
        if name == OPAQUE_MARKER:
            self._markers.append((parent, b""))
        elif not name.startswith(AUFS_PREFIX):
            hidden = name[len(WHITEOUT_PREFIX) :]
            if hidden not in (b"", b".", b".."):
                self._markers.append((parent, hidden))

    def _imply(self, path: bytes) -> Directory:
        missing = []
        while (directory := self.directories.get(path)) is None:
            missing.append(path)
            path = parent_of(path)
        for path in reversed(missing):
            name = base_of(path)
            if name in directory.children:
                raise _both(path)
            below = Directory(path, None)
            directory.children[name] = self.directories[path] = below
            directory = below
        return directory


def root_is_opaque(entries: Sequence[Entry]) -> bool:
    """Whether the layer hides all layers below. overlayfs ignores that in a root, so the stack must end with this layer."""
    return any(entry.name == OPAQUE_MARKER for entry in entries)


def _both(path: bytes) -> InvalidToc:
    return InvalidToc(f"{show(path)} is both a directory and something else, or there twice")
