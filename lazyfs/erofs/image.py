"""Writes a layer's metadata as an EROFS image, over which overlayfs finds the files' data: a pure function of the entries.

It holds no file data. A regular file that is not empty is one hole of its size, and two attributes point overlayfs to the
object with its bytes: `trusted.overlay.metacopy`, and `trusted.overlay.redirect` = `/NAME of the object`.

Layout, from the beginning: superblock, then inodes, each followed by its xattrs, and the last partial block of a
directory or the target of a symbolic link, then the blocks of large directories. A directory is followed by its files in the order
of their names and then by its subdirectories: a walk of the tree reads the image from front to back. All whiteouts
share one inode. There is no timestamp and no random UUID: equal entries give equal bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import IO, Final, NamedTuple

from lazyfs.erofs.directory import Extent, directory_data, extent_of
from lazyfs.erofs.ondisk import (
    BLOCK,
    BLOCK_BITS,
    CHUNK_BASED,
    CHUNK_BITS_MAX,
    FEATURE_CHUNKED_FILE,
    FEATURE_MTIME,
    FLAT_INLINE,
    FLAT_PLAIN,
    FT_BLK,
    FT_CHR,
    FT_DIR,
    FT_FIFO,
    FT_REG,
    FT_SYMLINK,
    INODE,
    INODE_SIZE,
    MAGIC,
    NULL_ADDRESS,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    XATTR_HEADER,
)
from lazyfs.erofs.outline import Directory, Inode, Outline
from lazyfs.erofs.xattrs import OPAQUE, WITH_WHITEOUTS, data_at, xattr_body
from lazyfs.errors import InvalidToc, show
from lazyfs.format.entry import Entry
from lazyfs.format.whiteout import device_of
from lazyfs.store.content import content_of

WRITER_VERSION: Final = 3
"""Increased whenever the same entries would give another image. Part of every image's name."""

_FILE_TYPES: Final = {
    "reg": (stat.S_IFREG, FT_REG),
    "symlink": (stat.S_IFLNK, FT_SYMLINK),
    "char": (stat.S_IFCHR, FT_CHR),
    "block": (stat.S_IFBLK, FT_BLK),
    "fifo": (stat.S_IFIFO, FT_FIFO),
}
_CHUNK: Final = 1 << (BLOCK_BITS + CHUNK_BITS_MAX)
_LINK_MAX: Final = 4095
_PADDING: Final = tuple(bytes(-length % SLOT) for length in range(SLOT))
_SECOND: Final = 10**9


def write_image(entries: Sequence[Entry], file: IO[bytes], inherited: Mapping[bytes, Entry] | None = None) -> None:
    """Write the image of a layer to `file`, from its beginning.

    `inherited` has the attributes in the layers below of the directories in `Outline.implied`; others belong to root, mode 0755. Raises
    InvalidToc for entries that no EROFS image can hold.
    """
    outline = Outline(entries)
    outline.complete(inherited or {})
    write_outline(outline, file)


def write_outline(outline: Outline, file: IO[bytes]) -> None:
    """Write the image of a completed outline to `file`."""
    layout = _Layout()
    layout.place(outline.root)
    file.writelines(layout.image())


class _Listing(NamedTuple):
    """A directory that has its place, to be written once all its entries have theirs."""

    directory: Directory
    parent: Directory
    piece: int
    xattrs: bytes
    names: list[bytes]
    whiteouts: AbstractSet[bytes]
    extent: Extent
    nlink: int
    ino: int
    inline: bool
    """Whether the last, partial block follows the inode."""


class _Layout:
    """Inodes in the order of the image; what has to wait until all have their place; and the blocks after them."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = [b""]
        self._position = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE
        self._inodes = 0
        self._listings: list[_Listing] = []
        self._lone_links: list[tuple[int, bytes, Inode, int]] = []
        """Symbolic links whose target does not fit into the same block: piece, xattrs, inode, its number."""
        self._any_whiteout = False

    def place(self, root: Directory) -> None:
        """Give `root` and everything below it a place. `covered`: inside an opaque directory, where whiteouts have nothing to hide."""
        stack = [(root, root, False)]
        while stack:
            directory, parent, covered = stack.pop()
            covered = covered or directory.opaque
            whiteouts = frozenset() if covered else directory.whiteouts
            children = directory.children
            names = sorted((*children, *whiteouts, b".", b".."))
            nodes = [children[name] for name in names if name in children]
            below = [node for node in nodes if isinstance(node, Directory)]
            self._place_directory(directory, parent, names, whiteouts, 2 + len(below))
            for node in nodes:
                if isinstance(node, Inode) and not node.nid:
                    self._place_inode(node)
            stack.extend((node, directory, covered) for node in reversed(below))

    def image(self) -> list[bytes]:
        """The whole image, in pieces. To be called once."""
        whiteout = self._place_whiteout() if self._any_whiteout else 0
        # One slot more than inodes need: fsck.erofs 1.5 reads an xattr header after each, even after the last one without xattrs.
        first_block = -(-(self._position + SLOT) // BLOCK)
        pieces = self._pieces
        pieces.append(bytes(first_block * BLOCK - self._position))
        blocks: list[bytes] = []
        address = first_block
        for listing in self._listings:
            data = directory_data(listing.names, _numbers(listing, whiteout), listing.extent)
            inlined = len(data) % BLOCK if listing.inline else 0
            alone = data[: len(data) - inlined]
            pieces[listing.piece] = _padded(_directory_inode(listing, address) + listing.xattrs + data[len(alone) :])
            blocks.append(_filled(alone))
            address += len(blocks[-1]) // BLOCK
        for piece, xattrs, inode, ino in self._lone_links:
            head = _inode(inode.entry, FLAT_PLAIN, stat.S_IFLNK, xattrs, len(inode.entry.link), address, ino, inode.nlink)
            pieces[piece] = _padded(head + xattrs)
            blocks.append(_filled(inode.entry.link))
            address += 1
        pieces[0] = bytes(SUPERBLOCK_OFFSET) + _superblock(self._listings[0].directory.nid, self._inodes, address)
        return pieces + blocks

    def _reserve(self, size: int, *, in_one_block: bool) -> int:
        """The nid of the next `size` bytes."""
        if in_one_block and self._position % BLOCK + size > BLOCK:
            gap = -self._position % BLOCK
            self._pieces.append(bytes(gap))
            self._position += gap
        nid = self._position // SLOT
        self._position += size + -size % SLOT
        self._inodes += 1
        return nid

    def _place_directory(
        self, directory: Directory, parent: Directory, names: list[bytes], whiteouts: AbstractSet[bytes], nlink: int
    ) -> None:
        assert directory.entry is not None
        own = (OPAQUE if directory.opaque else b"") + (WITH_WHITEOUTS if whiteouts else b"")
        xattrs = xattr_body(own, directory.entry)
        if any(len(name) > 255 for name in names):
            raise InvalidToc(f"{show(directory.path)} holds a name of more than 255 bytes")
        extent = extent_of(names)
        size = INODE_SIZE + len(xattrs)
        tail = extent.size % BLOCK
        inline = 0 < tail <= BLOCK - size
        directory.nid = self._reserve(size + tail if inline else size, in_one_block=inline)
        self._any_whiteout = self._any_whiteout or bool(whiteouts)
        self._listings.append(
            _Listing(directory, parent, len(self._pieces), xattrs, names, whiteouts, extent, nlink, self._inodes, inline)
        )
        self._pieces.append(b"")

    def _place_inode(self, inode: Inode) -> None:
        entry = inode.entry
        kind = entry.type
        if kind == "reg":
            if entry.size:
                holes = NULL_ADDRESS * -(-entry.size // _CHUNK)
                xattrs = xattr_body(data_at(_object_name(entry)), entry)
                layout, size, special, tail = CHUNK_BASED, entry.size, CHUNK_BITS_MAX, holes
            else:
                xattrs = xattr_body(b"", entry)
                layout, size, special, tail = FLAT_PLAIN, 0, 0, b""
        else:
            xattrs = xattr_body(b"", entry)
            layout, size, special, tail = FLAT_PLAIN, 0, 0, b""
            if kind == "symlink":
                size, tail = len(entry.link), entry.link
                if not 0 < size <= _LINK_MAX:
                    raise InvalidToc(f"{show(entry.name)} is a symbolic link to {size} bytes, which is not a path")
                if INODE_SIZE + len(xattrs) + size > BLOCK:
                    inode.nid = self._reserve(INODE_SIZE + len(xattrs), in_one_block=False)
                    self._lone_links.append((len(self._pieces), xattrs, inode, self._inodes))
                    self._pieces.append(b"")
                    return
                layout = FLAT_INLINE
            elif kind != "fifo":
                special = _device(entry)
        inode.nid = self._reserve(INODE_SIZE + len(xattrs) + len(tail), in_one_block=layout == FLAT_INLINE)
        head = _inode(entry, layout, _FILE_TYPES[kind][0], xattrs, size, special, self._inodes, inode.nlink)
        self._pieces.append(_padded(head + xattrs + tail))

    def _place_whiteout(self) -> int:
        nid = self._reserve(INODE_SIZE, in_one_block=False)
        nlink = sum(len(listing.whiteouts) for listing in self._listings)
        self._pieces.append(_inode(Entry(b"", "char", mode=0), FLAT_PLAIN, stat.S_IFCHR, b"", 0, 0, self._inodes, nlink))
        return nid


def _numbers(listing: _Listing, whiteout: int) -> list[tuple[int, int]]:
    """(nid, file type) of each name."""
    children = listing.directory.children
    numbers = []
    for name in listing.names:
        node = children.get(name)
        if node is None:
            if name == b".":
                numbers.append((listing.directory.nid, FT_DIR))
            elif name == b"..":
                numbers.append((listing.parent.nid, FT_DIR))
            else:
                numbers.append((whiteout, FT_CHR))
        elif isinstance(node, Directory):
            numbers.append((node.nid, FT_DIR))
        else:
            numbers.append((node.nid, _FILE_TYPES[node.entry.type][1]))
    return numbers


def _directory_inode(listing: _Listing, address: int) -> bytes:
    entry = listing.directory.entry
    assert entry is not None
    layout = FLAT_INLINE if listing.inline else FLAT_PLAIN
    return _inode(entry, layout, stat.S_IFDIR, listing.xattrs, listing.extent.size, address, listing.ino, listing.nlink)


def _inode(entry: Entry, layout: int, file_type: int, xattrs: bytes, size: int, special: int, ino: int, nlink: int) -> bytes:
    seconds, nanoseconds = divmod(entry.mtime_ns, _SECOND)
    # Linux ignores the mode of symbolic links.
    mode = 0o777 if file_type == stat.S_IFLNK else entry.mode & 0o7777
    return INODE.pack(
        layout,
        (len(xattrs) - len(XATTR_HEADER)) // 4 + 1 if xattrs else 0,
        file_type | mode,
        0,
        size,
        special,
        ino,
        entry.uid,
        entry.gid,
        seconds,
        nanoseconds,
        nlink,
    )


def _object_name(entry: Entry) -> str:
    try:
        content = content_of(entry.chunks)
    except ValueError as error:
        raise InvalidToc(f"{show(entry.name)} has chunks that make no file: {error}") from None
    if content.size != entry.size:
        raise InvalidToc(f"{show(entry.name)} has {entry.size} bytes, and its chunks {content.size}")
    return content.name


def _device(entry: Entry) -> int:
    """Encode a device number as the kernel's new_encode_dev does."""
    major, minor = device_of(entry)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def _superblock(root: int, inodes: int, blocks: int) -> bytes:
    fields = (MAGIC, 0, FEATURE_MTIME, BLOCK_BITS, 0, root, inodes, 0, 0, blocks, 0, 0)
    return SUPERBLOCK.pack(*fields, bytes(16), b"lazyfs", FEATURE_CHUNKED_FILE, 0, 0, 0, 0, 0, 0, 0)


def _padded(record: bytes) -> bytes:
    return record + _PADDING[len(record) % SLOT]


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)
