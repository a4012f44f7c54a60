"""syncfs(2): everything written to one file system is on its disk."""

from __future__ import annotations

from lazyfs.kernel.libc import call


def syncfs(fd: int) -> None:
    """Write back all of the file system that `fd` lies on. Blocks as long as the disk takes. Raises OSError: a write has failed."""
    call("syncfs", fd)
