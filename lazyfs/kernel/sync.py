"""syncfs(2): flushes one file system to its disk."""

from __future__ import annotations

from lazyfs.kernel.libc import call


def syncfs(fd: int) -> None:
    """Write back the file system of `fd`. Blocks as long as the disk takes. Raises OSError if a write failed."""
    call("syncfs", fd)
