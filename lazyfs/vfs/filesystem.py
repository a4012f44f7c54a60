"""A file system independent of FUSE: the merged tree of an image, and the bytes of its files.

Everything but `read` works from memory and never waits. There are no file handles: inode numbers suffice, so a process that takes
over a mount can answer the requests of its predecessor.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from lazyfs.errors import LazyfsError, show
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob, Piece, pieces_of
from lazyfs.format.entry import Entry
from lazyfs.format.whiteout import device_of
from lazyfs.image.layer import Layer
from lazyfs.vfs.tree import Node, Tree

_FILE_TYPES: Final = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
_FILES: Final = 4096
"""Files whose pieces are cached between reads; the oldest is dropped for a new one."""
_MANY: Final = 1000
"""Chunks of a file above which its pieces are computed in a thread: 1.5 µs each."""


class Child(NamedTuple):
    """An entry of a directory listing."""

    name: bytes
    node: Node


class FileSystem:
    """One image, read-only."""

    def __init__(self, tree: Tree, layers: Sequence[Layer], fetcher: Fetcher) -> None:
        self.tree = tree
        self._layers = layers
        self._fetcher = fetcher
        self._blobs: dict[int, LayerBlob] = {}
        self._making = trio.Lock()
        self._pieces: dict[int, tuple[Piece, ...]] = {}
        self._listing: tuple[int, list[Child]] = (0, [])

    def node(self, ino: int) -> Node:
        """The node of an inode number that this file system returned. Raises KeyError for others."""
        return self.tree.nodes[ino]

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """The child of a directory, including `.` and `..`."""
        directory = self.tree.nodes[parent]
        if name == b".":
            return directory
        if name == b"..":
            return directory.parent
        return directory.children.get(name) if directory.children is not None else None

    def listing(self, ino: int) -> list[Child]:
        """A directory's entries: `.` and `..` first, then in the order of their bytes in the layers."""
        if self._listing[0] != ino:
            node = self.tree.nodes[ino]
            dots = [Child(b".", node), Child(b"..", node.parent or node)]
            self._listing = (ino, dots + [Child(*item) for item in (node.children or {}).items()])
        return self._listing[1]

    async def blob(self, layer: int) -> LayerBlob:
        """A layer's pieces, computed on first use, so that a mount is ready before that."""
        known = self._blobs.get(layer)
        if known is None:
            async with self._making:
                known = self._blobs.get(layer)
                if known is None:
                    known = self._blobs[layer] = await trio.to_thread.run_sync(LayerBlob.of, self._layers[layer])
        return known

    async def _pieces_of(self, ino: int, entry: Entry) -> tuple[Piece, ...]:
        if len(entry.chunks) <= _MANY:
            return self._remember(ino, pieces_of(entry))
        async with self._making:
            # Another task may have computed it while this one waited.
            return self._pieces.get(ino) or self._remember(ino, await trio.to_thread.run_sync(pieces_of, entry))

    def _remember(self, ino: int, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        while len(self._pieces) >= _FILES:
            del self._pieces[next(iter(self._pieces))]
        self._pieces[ino] = pieces
        return pieces

    async def read(self, ino: int, offset: int, size: int) -> bytes | memoryview:
        """Bytes `[offset, offset + size)` of a regular file, fewer at its end.

        Raises LazyfsError, naming the file, if they cannot be fetched. Cancelled: nothing is left behind.
        """
        node = self.tree.nodes[ino]
        entry = node.entry
        end = min(offset + size, entry.size)
        if offset >= end:
            return b""
        pieces = self._pieces.get(ino) or await self._pieces_of(ino, entry)
        blob = await self.blob(node.layer)
        parts: list[bytes | memoryview] = []
        index = bisect_right(pieces, offset, key=lambda piece: piece.chunk.file_offset) - 1
        try:
            while offset < end:
                piece = pieces[index]
                start = offset - piece.chunk.file_offset
                length = min(end - offset, piece.chunk.size - start)
                parts.append(await self._fetcher.read(blob, piece, start, length))
                offset += length
                index += 1
        except LazyfsError as error:
            raise error.reworded(f"cannot read {show(entry.name)}: {error.message}", error.hint) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """What stat shows of a node."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: tuple[int, int]
    size: int
    mtime_ns: int


def attributes(node: Node) -> Attributes:
    """The attributes that overlayfs shows after a full pull."""
    entry = node.entry
    size = len(entry.link) if entry.type == "symlink" else 4096 if entry.type == "dir" else entry.size
    mode = 0o777 if entry.type == "symlink" else entry.mode  # the kernel ignores the mode of symbolic links
    return Attributes(
        node.ino,
        _FILE_TYPES[entry.type] | mode,
        node.nlink,
        entry.uid,
        entry.gid,
        device_of(entry),
        size,
        entry.mtime_ns,
    )
