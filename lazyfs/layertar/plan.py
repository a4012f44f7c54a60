"""The order in which a layer's entries are written.

The order of the tar, except where readers need another: a directory before its contents, with its opaque marker and whiteouts right
after it (containerd fails on a whiteout that follows an entry of the same name), and a hard link after the file that it links to.
Prioritised files come first, with everything that they need; the landmark after them ends the files to prefetch.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lazyfs.format.entry import LANDMARK_CONTENT, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, Entry, parent_of
from lazyfs.format.sparse import Extent
from lazyfs.layertar.layer_index import LayerIndex


class Planned(msgspec.Struct, frozen=True, gc=False):
    """An entry to be written, and its bytes: in the spooled tar, or in this value."""

    entry: Entry
    extents: tuple[Extent, ...] = ()
    content: bytes = b""


def plan_layer(index: LayerIndex, prioritized: Iterable[bytes] = (), *, landmark: bool = True) -> tuple[Planned, ...]:
    """All entries of the layer in order, including one landmark. `prioritized` are names in this layer, in order.

    Without `landmark` for an eager layer, which is not written and has nothing to prefetch.
    """
    plan = _Plan(index)
    for name in prioritized:
        plan.add(name)
    if landmark:
        plan.add_landmark()
    plan.add(b"")
    for name in index.inodes:
        plan.add(name)
    return tuple(plan.planned)


class _Plan:
    def __init__(self, index: LayerIndex) -> None:
        self._index = index
        self._done: set[bytes] = set()
        self.planned: list[Planned] = []

    def add_landmark(self) -> None:
        name = PREFETCH_LANDMARK if self.planned else NO_PREFETCH_LANDMARK
        self.planned.append(Planned(Entry(name, "reg", 0, size=len(LANDMARK_CONTENT)), content=LANDMARK_CONTENT))

    def add(self, name: bytes) -> None:
        """Add `name` to the plan, after everything that must precede it."""
        needed = []
        while name not in self._done:
            needed.append(name)
            if not name:
                break
            name = parent_of(name)
        for step in reversed(needed):
            self._write(step)

    def _write(self, name: bytes) -> None:
        self._done.add(name)
        inode = self._index.inodes.get(name)
        if inode is None:
            assert not name, "every parent but the root is in the index"
        elif inode.name != name:
            self.add(inode.name)
            self.planned.append(Planned(_link(inode.entry, name, inode.name)))
        else:
            entry = inode.entry if inode.entry.name == name else msgspec.structs.replace(inode.entry, name=name)
            self.planned.append(Planned(entry, inode.extents))
        self.planned += [Planned(marker) for marker in self._index.markers.get(name, ())]


def _link(entry: Entry, name: bytes, target: bytes) -> Entry:
    """A hard link with the attributes of its target: runtimes differ on which of the two count."""
    return Entry(name, "hardlink", entry.mode, entry.uid, entry.gid, entry.mtime_ns, 0, target)
