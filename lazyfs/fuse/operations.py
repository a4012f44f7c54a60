"""The adapter between pyfuse3 and the file system: it only translates.

A file handle is the inode number, forget is a no-op, and names and attributes are valid for ever, because an image does not
change: the kernel asks once. Every handler is guarded (guard.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, ReaddirToken

from lazyfs.fuse.guard import guarded
from lazyfs.vfs.filesystem import FileSystem, attributes
from lazyfs.vfs.tree import Node

_FOR_EVER: Final = 1e9
STATUS_XATTR: Final = b"user.lazyfs.status"
"""An attribute of the root with the mount's status as JSON. It is not listed."""
PROCESS_XATTR: Final = b"user.lazyfs.process"
"""Likewise, with this process's pid: immediate, while a status must be counted."""


class Operations(pyfuse3.Operations):
    """pyfuse3's callbacks over a FileSystem."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, filesystem: FileSystem, status: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__()
        self._fs = filesystem
        self._status = status
        # Without it the kernel ignores ACLs. With it, the kernel requests the ACL of every file opened by anyone but its owner, so
        # only images that have ACLs enable it.
        self.enable_acl = filesystem.tree.has_acls
        self._nothing = EntryAttributes()
        self._nothing.entry_timeout = _FOR_EVER  # inode 0: the kernel caches that there is no such name

    @guarded
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: object) -> EntryAttributes:
        node = self._fs.lookup(parent_inode, name)
        return self._nothing if node is None else _entry(node)

    @guarded
    async def getattr(self, inode: InodeT, ctx: object) -> EntryAttributes:
        return _entry(self._fs.node(inode))

    @guarded
    async def readlink(self, inode: InodeT, ctx: object) -> bytes:
        return self._fs.node(inode).entry.link

    @guarded
    async def opendir(self, inode: InodeT, ctx: object) -> InodeT:
        return inode

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        listing = self._fs.listing(fh)
        for position in range(start_id, len(listing)):
            name, node = listing[position]
            if not pyfuse3.readdir_reply(token, name, _entry(node), position + 1):
                break

    @guarded
    async def open(self, inode: InodeT, flags: int, ctx: object) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        return FileInfo(fh=inode, keep_cache=True)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 takes any contiguous buffer, whatever its annotation says: no copy before the kernel's own.
        return await self._fs.read(fh, off, size)  # type: ignore[return-value]

    @guarded
    async def getxattr(self, inode: InodeT, name: bytes, ctx: object) -> bytes:
        node = self._fs.node(inode)
        if name == STATUS_XATTR and inode == pyfuse3.ROOT_INODE:
            return await self._status()
        if name == PROCESS_XATTR and inode == pyfuse3.ROOT_INODE:
            return b"%d" % os.getpid()
        for key, value in node.entry.xattrs:
            if key == name:
                return value
        raise FUSEError(errno.ENODATA)

    @guarded
    async def listxattr(self, inode: InodeT, ctx: object) -> Sequence[bytes]:
        return [key for key, _ in self._fs.node(inode).entry.xattrs]

    @guarded
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = (self._fs.tree.size + 4095) // 4096
        data.f_files = len(self._fs.tree.nodes)
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def release(self, fh: int) -> None:
        """Nothing to release."""

    async def releasedir(self, fh: int) -> None:
        """Nothing to release."""

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Inodes are never forgotten: every process derives the same ones."""


def _entry(node: Node) -> EntryAttributes:
    shown = attributes(node)
    entry = EntryAttributes()
    entry.st_ino = InodeT(shown.ino)
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = _FOR_EVER
    entry.st_mode = shown.mode
    entry.st_nlink = shown.nlink
    entry.st_uid = shown.uid
    entry.st_gid = shown.gid
    entry.st_rdev = os.makedev(*shown.rdev)
    entry.st_size = shown.size
    entry.st_blksize = 4096
    entry.st_blocks = (shown.size + 511) // 512
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = shown.mtime_ns
    return entry
