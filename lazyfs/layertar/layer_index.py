"""The result of unpacking a layer's tar onto the layers below: each name once, at its real path.

A tar is a list of instructions to carry out in order; a TOC is a description. The difference: duplicate names (the last wins, and a
hard link made in between keeps the earlier content), names that lead through symbolic links, directories that are implied or
described elsewhere, the format's own entries of an earlier conversion, and whiteouts, which hide entries of the layers below and
never of the same layer, wherever they are in the tar. The index gives the result that umoci leaves on a disk.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lazyfs.errors import InvalidTar, show
from lazyfs.format.bounds import ENTRY, Bounds
from lazyfs.format.entry import OPAQUE_MARKER, OWN_NAMES, WHITEOUT_PREFIX, Entry, base_of, parent_of, with_owner
from lazyfs.format.sparse import Extent
from lazyfs.format.tar import TarMember
from lazyfs.format.whiteout import LeftOut, is_whiteout_device, name_kind
from lazyfs.layertar.tree import LowerTree, Node


class Inode:
    """An inode of any type, with one name or several."""

    __slots__ = ("entry", "extents", "name")

    def __init__(self, entry: Entry, extents: tuple[Extent, ...]) -> None:
        self.entry = entry
        self.extents = extents
        self.name = entry.name
        """The name under which it is written; its other names become hard links to this one."""


class LayerIndex(msgspec.Struct, frozen=True):
    """A layer's names in the order of its tar. Directories that it only implies come before the names that imply them."""

    inodes: dict[bytes, Inode]
    markers: dict[bytes, tuple[Entry, ...]]
    """By directory: its whiteouts, the opaque marker first."""


def index_layer(
    tree: LowerTree,
    members: Iterable[TarMember],
    layer: int,
    what: str,
    left_out: LeftOut | None = None,
    bounds: Bounds | None = None,
) -> LayerIndex:
    """Index a layer and add it to `tree`, which holds the layers below it.

    `layer` is its number, `what` names it in errors, `bounds` is its account, also used while the
    tar was read. Entries that a symbolic link leads below a whiteout's name are counted in `left_out`.
    Raises InvalidTar for a tar that runtimes would unpack differently.
    """
    account = Bounds(0, what, InvalidTar) if bounds is None else bounds
    return _Placing(tree, layer, what, LeftOut() if left_out is None else left_out, account).place_all(members)


class _Placing:
    def __init__(self, tree: LowerTree, layer: int, what: str, left_out: LeftOut, bounds: Bounds) -> None:
        self._tree = tree
        self._layer = layer
        self._what = what
        self._left_out = left_out
        self._bounds = bounds
        self._inodes: dict[bytes, Inode] = {}
        self._own: dict[bytes, Inode] = {}
        """Inodes with a name that belongs to the format. They are left out, but hard links to them are ordinary files."""
        self._directories: dict[bytes, tuple[bytes, Node] | None] = {}
        """The real name and node of each directory, by its name in the tar. Cleared when they may have changed."""
        self._emptied: set[bytes] = set()
        """Directories that were something else for a while. Their contents in the layers below are gone."""
        self._hidden_below: set[bytes] = set()
        self._markers: dict[bytes, dict[bytes, Entry]] = {}
        """By real directory, then by base name."""

    def place_all(self, members: Iterable[TarMember]) -> LayerIndex:
        for member in members:
            if base_of(member.entry.name).startswith(WHITEOUT_PREFIX):
                self._white_out(member.entry)
            else:
                self._place(member)
        markers = self._standing_markers()
        self._hide_devices()
        for name, inode in reversed(self._inodes.items()):
            inode.name = name  # its earliest remaining name
        return LayerIndex(self._inodes, markers)

    def _white_out(self, entry: Entry) -> None:
        resolved = self._tree.resolve(parent_of(entry.name), self._bounds)
        if resolved.node is None or resolved.node.children is None:
            return  # it hides nothing, and writing it would create its directory
        base = base_of(entry.name)
        if name_kind(_join(resolved.name, base)) != "whiteout":
            return
        if base == OPAQUE_MARKER:
            self._hide_below(resolved.name, resolved.node)
        else:
            self._hide(_join(resolved.name, base[len(WHITEOUT_PREFIX) :]), resolved.node)
        marker = with_owner(Entry(_join(resolved.name, base), "reg", entry.mode, entry.uid, entry.gid, entry.mtime_ns))
        self._markers.setdefault(resolved.name, {})[base] = marker

    def _hide(self, name: bytes, directory: Node) -> None:
        assert directory.children is not None
        child = directory.children.get(base_of(name))
        if child is None:
            return
        if name not in self._inodes:
            del directory.children[base_of(name)]
            self._directories.clear()
        elif child.children is not None:
            self._hide_below(name, child)

    def _hide_below(self, name: bytes, directory: Node) -> None:
        """Hide the contents of a directory in the layers below. Done once per directory, which bounds the cost of many whiteouts."""
        pending = [(name, directory)]
        while pending:
            path, here = pending.pop()
            if path in self._hidden_below or here.children is None:
                continue
            self._hidden_below.add(path)
            self._bounds.step(len(here.children))
            for base, child in list(here.children.items()):
                inside = _join(path, base)
                if inside in self._inodes:
                    pending.append((inside, child))
                else:
                    del here.children[base]
        self._directories.clear()

    def _place(self, member: TarMember) -> None:
        entry = member.entry
        if not entry.name:
            entry = with_owner(entry, self._tree.root.entry)
            self._inodes[b""] = Inode(entry, ())
            self._tree.root.entry = entry
            self._tree.root.layer = self._layer
            return
        if entry.name.partition(b"/")[0] in OWN_NAMES:
            self._own[entry.name] = (
                self._link_target(entry) if entry.type == "hardlink" else Inode(with_owner(entry), member.extents)
            )
            return
        found = self._directory(parent_of(entry.name))
        if found is None:
            self._left_out.add(entry.name, "below")
            return
        real_parent, directory = found
        base = base_of(entry.name)
        name = _join(real_parent, base)
        if name in OWN_NAMES:
            return
        if entry.name != name:
            entry = msgspec.structs.replace(entry, name=name)
        children = directory.children
        assert children is not None
        there = children.get(base)
        if entry.type == "hardlink":
            inode = self._link_target(entry)
            entry = msgspec.structs.replace(inode.entry, name=name)
        else:
            entry = with_owner(entry, None if there is None else there.entry)
            inode = Inode(entry, member.extents)
        if there is not None and there.children is not None and entry.type == "dir":
            there.entry = entry
            there.layer = self._layer
            self._inodes.pop(name, None)
        else:
            if there is not None:
                self._forget(name, there)
            children[base] = Node(entry, self._layer)
        self._inodes[name] = inode

    def _directory(self, path: bytes) -> tuple[bytes, Node] | None:
        """The directory at `path`, created or described in this layer if the layer does not name it; None if it is never shown."""
        if path in self._directories:
            return self._directories[path]
        known = self._directories[path] = self._tree.make(path, self._layer, self._what, self._bounds)
        if known is not None:
            self._describe(known[0])
        return known

    def _describe(self, directory: bytes) -> None:
        missing = []
        while directory and directory not in self._inodes:
            missing.append(directory)
            directory = parent_of(directory)
        if not missing:
            return
        node = self._tree.resolve(directory, self._bounds).node
        for name in reversed(missing):
            self._bounds.describe(ENTRY + len(name))
            assert node is not None
            assert node.children is not None
            node = node.children[base_of(name)]
            self._inodes[name] = Inode(msgspec.structs.replace(node.entry, name=name), ())

    def _link_target(self, entry: Entry) -> Inode:
        resolved = self._tree.resolve(parent_of(entry.link), self._bounds)
        name = _join(resolved.name, base_of(entry.link))
        target = (self._inodes.get(name) or self._own.get(name)) if resolved.node else None
        if target is None or target.entry.type == "dir" or name == entry.name:
            raise InvalidTar(
                f"{self._what}: {show(entry.name)} is a hard link to {show(entry.link)}, which is not an earlier file of its layer"
            )
        return target

    def _forget(self, name: bytes, node: Node) -> None:
        """Drop `name` and everything below it from this layer: something else replaces it."""
        pending = [(name, node)]
        while pending:
            path, here = pending.pop()
            self._inodes.pop(path, None)
            self._bounds.step()
            for base, child in (here.children or {}).items():
                pending.append((_join(path, base), child))
        if node.children is not None:
            self._emptied.add(name)
        if node.children is not None or node.entry.type == "symlink":
            self._directories.clear()

    def _hide_devices(self) -> None:
        """Remove 0:0 devices from the tree: overlayfs treats them as whiteouts, so the layers above do not see them."""
        for name, inode in self._inodes.items():
            entry = inode.entry
            if entry.type == "char" and is_whiteout_device("char", entry.major, entry.minor):
                directory = self._tree.resolve(parent_of(name), self._bounds).node
                assert directory is not None
                assert directory.children is not None
                directory.children.pop(base_of(name), None)

    def _standing_markers(self) -> dict[bytes, tuple[Entry, ...]]:
        """The whiteouts by their directories, which get an entry. Whiteouts whose directory was removed later are gone with it."""
        # A directory that the same layer removes and recreates. Where whiteouts are devices (containerd's overlayfs,
        # stargz-snapshotter) the directory would replace the whiteout, and the contents below would show through again.
        removed = [
            _join(directory, base[len(WHITEOUT_PREFIX) :]) for directory, markers in self._markers.items() for base in markers
        ]
        for name in sorted(self._emptied.union(removed)):
            if name in self._inodes and self._inodes[name].entry.type == "dir":
                marker = Entry(_join(name, OPAQUE_MARKER), "reg", 0o644)
                self._markers.setdefault(name, {}).setdefault(OPAQUE_MARKER, marker)
        standing = {}
        for directory, markers in self._markers.items():
            resolved = self._tree.resolve(directory, self._bounds)
            if resolved.name == directory and resolved.node is not None and resolved.node.children is not None:
                self._describe(directory)
                standing[directory] = tuple(sorted(markers.values(), key=lambda entry: base_of(entry.name) != OPAQUE_MARKER))
        return standing


def _join(directory: bytes, base: bytes) -> bytes:
    return directory + b"/" + base if directory else base
