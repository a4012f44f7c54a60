"""Finds the attributes that a stack of layers shows for a directory.

It looks them up as overlayfs does, topmost layer first. Most layers are images made by `write_image`, which were complete when they
got their name; a damaged one is an error, never a guess. The others are directories (unpacked.py).
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

from lazyfs.erofs.ondisk import (
    BLOCK,
    DIRENT,
    DIRENT_SIZE,
    FLAT_INLINE,
    FT_DIR,
    INODE,
    INODE_SIZE,
    MAGIC,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    XATTR_WHOLE_NAMES,
)
from lazyfs.erofs.unpacked import UnpackedLayer
from lazyfs.erofs.xattrs import OPAQUE, unescaped
from lazyfs.errors import StoreUnusable
from lazyfs.format.entry import Entry, base_of, parent_of

_PREFIXES: Final = dict(XATTR_PREFIXES) | {index: name for name, index in XATTR_WHOLE_NAMES.items()}


def inherited_from(layers: Sequence[Path], paths: Iterable[bytes]) -> dict[bytes, Entry]:
    """The directories among `paths` that a stack of `layers` (images and directories, lowest first) shows: path -> entry.

    Raises StoreUnusable if a layer cannot be read.
    """
    found: dict[bytes, Entry] = {}
    with ExitStack() as stack:
        opened: list[_Image | UnpackedLayer] = []
        for path in paths:
            for depth in range(len(layers)):
                if depth == len(opened):
                    opened.append(_open(layers[-1 - depth], stack))
                entry, covered = opened[depth].look_up(path)
                if entry is not None:
                    found[path] = entry
                if entry is not None or covered:
                    break
    return found


def _open(layer: Path, stack: ExitStack) -> _Image | UnpackedLayer:
    return stack.enter_context(UnpackedLayer(layer)) if layer.is_dir() else stack.enter_context(_Image(layer))


class _Inode(NamedTuple):
    entry: Entry
    opaque: bool
    size: int
    blocks: int
    """Offset of the full blocks."""
    tail: int
    """Offset of the data after the inode; -1 if there is none."""


class _Image:
    """An image, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        fields = SUPERBLOCK.unpack_from(self._data, SUPERBLOCK_OFFSET) if len(self._data) >= BLOCK else (0,)
        if fields[0] != MAGIC:
            self._data.close()
            raise self._damaged("no superblock")
        self._root: int = fields[5]
        self._known: dict[bytes, tuple[_Inode, bool]] = {}
        """Directories that were passed on the way to others, and whether they hide the layers below."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def look_up(self, path: bytes) -> tuple[Entry | None, bool]:
        """(the directory at `path` or None, whether this layer hides `path` of the layers below)."""
        try:
            if not self._known:
                root = self._inode(self._root, b"")
                self._known[b""] = root, root.opaque
            unknown = []
            while path not in self._known:
                unknown.append(path)
                path = parent_of(path)
            inode, covered = self._known[path]
            for path in reversed(unknown):
                nid, kind = self._child(inode, base_of(path))
                if not nid:
                    return None, covered
                if kind != FT_DIR:
                    return None, True
                inode = self._inode(nid, path)
                covered = covered or inode.opaque
                self._known[path] = inode, covered
        except (struct.error, IndexError, KeyError, ValueError, OverflowError) as error:
            raise self._damaged(error) from error
        return inode.entry, covered

    def _inode(self, nid: int, path: bytes) -> _Inode:
        offset = nid * SLOT
        layout, words, mode, _, size, special, _, uid, gid, seconds, nanoseconds, _ = INODE.unpack_from(self._data, offset)
        body = offset + INODE_SIZE
        length = len(XATTR_HEADER) + 4 * (words - 1) if words else 0
        own, opaque = self._xattrs(body + len(XATTR_HEADER), body + length)
        entry = Entry(path, "dir", stat.S_IMODE(mode), uid, gid, seconds * 10**9 + nanoseconds, xattrs=own)
        return _Inode(entry, opaque, size, special * BLOCK, body + length if layout == FLAT_INLINE else -1)

    def _xattrs(self, position: int, end: int) -> tuple[tuple[tuple[bytes, bytes], ...], bool]:
        """(the layer's own attributes, whether the directory is opaque)."""
        own = []
        opaque = False
        while position < end:
            name_size, index, value_size = XATTR_ENTRY.unpack_from(self._data, position)
            start = position + XATTR_ENTRY.size
            middle = start + name_size
            key = unescaped(_PREFIXES[index] + self._data[start:middle])
            if key is not None:
                own.append((key, self._data[middle : middle + value_size]))
            opaque = opaque or self._data[position : position + len(OPAQUE)] == OPAQUE
            position = middle + value_size
            position += -position % 4
        return tuple(own), opaque

    def _child(self, directory: _Inode, name: bytes) -> tuple[int, int]:
        """(nid, file type) of a name; nid 0 if it is absent. Bisects the blocks by their first names, as the kernel does."""
        low, high = 0, -(-directory.size // BLOCK) - 1
        while low < high:
            middle = (low + high + 1) // 2
            start, end = self._block(directory, middle)
            if self._name(start, end, start) <= name:
                low = middle
            else:
                high = middle - 1
        start, end = self._block(directory, low)
        count = DIRENT.unpack_from(self._data, start)[1] // DIRENT_SIZE
        for position in range(start, start + count * DIRENT_SIZE, DIRENT_SIZE):
            if self._name(start, end, position) == name:
                nid, _, kind = DIRENT.unpack_from(self._data, position)
                return nid, kind
        return 0, 0

    def _block(self, directory: _Inode, index: int) -> tuple[int, int]:
        """(start, end) of a directory's block in the image."""
        length = min(BLOCK, directory.size - index * BLOCK)
        start = directory.tail if directory.tail >= 0 and length < BLOCK else directory.blocks + index * BLOCK
        return start, start + length

    def _name(self, start: int, end: int, position: int) -> bytes:
        """The name of the entry at `position` in a block; the last name ends at the end of the block or at a NUL."""
        offset = start + DIRENT.unpack_from(self._data, position)[1]
        first = start + DIRENT.unpack_from(self._data, start)[1]
        after = position + DIRENT_SIZE
        if after < first:
            return self._data[offset : start + DIRENT.unpack_from(self._data, after)[1]]
        return self._data[offset:end].rstrip(b"\0")

    def _damaged(self, why: object) -> StoreUnusable:
        return StoreUnusable(f"the metadata image {self._path} is damaged ({why})", hint="Remove it: it will be built again.")
