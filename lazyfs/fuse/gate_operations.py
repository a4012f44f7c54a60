"""The adapter between pyfuse3 and the gate: it only translates.

As in operations.py a file handle is the inode number, forget is a no-op, and a name that was returned is valid for ever. Only
a negative lookup is not cached: the kernel is to ask again. The root and statfs are answered without the gate: overlayfs
asks for both when it is mounted, and a mount must not wait for an image to be indexed.

Other requests (extended attributes, access, flush) are refused with ENOSYS, which the kernel remembers: it asks once.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, ReaddirToken, RequestContext

from lazyfs.fuse.guard import guarded
from lazyfs.gate.gate import Attributes, Gate

_FOR_EVER: Final = 1e9


class GateOperations(pyfuse3.Operations):
    """pyfuse3's callbacks over a Gate."""

    # Both are negotiated once per connection: a version that changes one cannot take over an older version's connection.
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._not_here = EntryAttributes()
        self._not_here.entry_timeout = 0  # inode 0: no such entry; with timeout 0 the kernel does not cache that

    @guarded
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        # The context's pid is a thread id.
        shown = await self._gate.lookup(parent_inode, name, ctx.pid)
        return self._not_here if shown is None else _entry(shown)

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        if inode == pyfuse3.ROOT_INODE:
            return _entry(Attributes(inode, stat.S_IFDIR | 0o555, nlink=2))
        return _entry(await self._gate.attributes(inode))

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Empty: objects are looked up by name."""

    @guarded
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        self._gate.opened(inode)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 takes any contiguous buffer, whatever its annotation says: no copy before the kernel's own.
        return await self._gate.read(fh, off, size)  # type: ignore[return-value]

    @guarded
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = data.f_files = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def release(self, fh: FileHandleT) -> None:
        """Nothing to release."""

    async def releasedir(self, fh: FileHandleT) -> None:
        """Nothing to release."""

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Inodes are never forgotten: every process derives the same ones."""


def _entry(shown: Attributes) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(shown.ino)
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = _FOR_EVER
    entry.st_mode = pyfuse3.ModeT(shown.mode)
    entry.st_nlink = shown.nlink
    entry.st_uid = entry.st_gid = entry.st_rdev = 0
    entry.st_size = shown.size
    entry.st_blksize = 4096
    entry.st_blocks = (shown.size + 511) // 512
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = 0
    return entry
