"""The adapter between pyfuse3 and the gate: translates, and decides nothing.

As in operations.py a file handle is the inode number, forget is a no-op, and a name that was given out is valid for ever. Only
"not here" is not remembered: the kernel shall ask again. The root and statfs are answered from here, without the gate: overlayfs
asks for both when it mounts, and nothing that mounts may wait for an image to be indexed.

What is not answered (extended attributes, access, flush) is refused with ENOSYS, which the kernel remembers: it asks once.
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

    # Both are agreed with the kernel once a connection: a version that changes one cannot take over the connection of another.
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._not_here = EntryAttributes()
        self._not_here.entry_timeout = 0  # inode 0 is not an entry; without time the kernel does not remember that

    @guarded
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        # The context's pid is that of the thread.
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
        """What the gate has is asked for by name."""

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
        """Nothing is held."""

    async def releasedir(self, fh: FileHandleT) -> None:
        """Nothing is held."""

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Inodes are never forgotten: any process derives them alike."""


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
