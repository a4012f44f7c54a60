"""The EROFS on-disk format, as far as metadata images need it: superblock, extended inode, directory entry, extended attributes.

Source: the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Everything is little-endian. Compression,
multiple devices and fscache are left out; Linux has supported the rest since 5.15.

An inode's number (nid) is its position: its byte offset is `meta_blkaddr * 4096 + 32 * nid`. Here the metadata area begins
with block 0, so the offset is 32 * nid.
"""

from __future__ import annotations

import struct
from typing import Final

BLOCK_BITS: Final = 12
BLOCK: Final = 1 << BLOCK_BITS
"""Bytes in a block. No kernel accepts blocks larger than its page; since 6.4 all accept smaller ones."""
SLOT: Final = 32
"""Inodes begin at multiples of this many bytes."""

MAGIC: Final = 0xE0F5E1E2
SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 128
SUPERBLOCK: Final = struct.Struct("<III BBH QQI III 16s16s I HHH BB I Q 24x")
"""magic, checksum, compatible features; block bits, slots, root's nid; inodes, build time, its nanoseconds; blocks, metadata's
first block, shared xattrs' first block; uuid, volume's name; incompatible features; compression, devices, their table;
directory block bits, xattr prefixes, their place, packed inode."""
assert SUPERBLOCK.size == SUPERBLOCK_SIZE
FEATURE_MTIME: Final = 0x2
"""Compatible: an inode's time is its mtime."""
FEATURE_CHUNKED_FILE: Final = 0x4
"""Incompatible: there are chunk-based files."""

INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
"""format, xattr count, mode, 0, size, u (by type), ino, uid, gid, mtime, its nanoseconds, nlink."""
INODE_SIZE: Final = 64
assert INODE.size == INODE_SIZE
_EXTENDED: Final = 1
FLAT_PLAIN: Final = _EXTENDED | 0 << 1
"""Format of an inode whose data are whole blocks, u being the first."""
FLAT_INLINE: Final = _EXTENDED | 2 << 1
"""As FLAT_PLAIN, but the last, partial block follows the inode's xattrs and must not cross the end of a block."""
CHUNK_BASED: Final = _EXTENDED | 4 << 1
"""Data in chunks, whose size is in u. The xattrs are followed by one block address of 4 bytes per chunk."""
CHUNK_BITS_MAX: Final = 31
"""The low five bits of a chunk-based inode's u: log2 of a chunk's blocks. The largest chunk has 8 TiB."""
NULL_ADDRESS: Final = b"\xff\xff\xff\xff"
"""The block address of a chunk that is a hole."""

DIRENT: Final = struct.Struct("<QHBx")
"""nid, offset of the name in its block, file type. A block's names follow its entries; the first offset counts the entries."""
DIRENT_SIZE: Final = 12
assert DIRENT.size == DIRENT_SIZE
FT_REG: Final = 1
FT_DIR: Final = 2
FT_CHR: Final = 3
FT_BLK: Final = 4
FT_FIFO: Final = 5
FT_SYMLINK: Final = 7

XATTR_HEADER: Final = b"\0" * 12
"""Precedes an inode's xattrs: no name filter, no shared xattrs."""
XATTR_ENTRY: Final = struct.Struct("<BBH")
"""Length of the name after its prefix, index of the prefix, length of the value. Name and value follow, padded to 4 bytes."""
XATTR_BODY_MAX: Final = len(XATTR_HEADER) + 4 * (0xFFFF - 1)
"""The limit of an inode's 16-bit count of xattr words."""
XATTR_VALUE_MAX: Final = 0xFFFF
XATTR_PREFIXES: Final = ((1, b"user."), (4, b"trusted."), (6, b"security."))
XATTR_WHOLE_NAMES: Final = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
"""Names that consist of a prefix alone."""
