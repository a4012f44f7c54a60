"""A process's own directory for temporary files, and its placement on disk.

ext4 puts a new file into the block group of its directory, and skips inodes that were freed within the last half minute. In the
group of a store that evicts as much as it takes in, or of one that was just pruned, creating a file was measured at 500 to 900
microseconds instead of 30. So the directory is marked as the top of directory hierarchies (chattr +T: directories in it go to
the groups with the most room), and files are created in subdirectories, a new one every few thousand files.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

_GET_FLAGS: Final = 0x80086601
_SET_FLAGS: Final = 0x40086602
_TOP_OF_HIERARCHIES: Final = 0x20000
"""linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL."""
_FILES_A_FOLDER: Final = 4096
"""Half of the inodes of an ext4 block group."""


class TemporaryFolder:
    """The directory. The creator removes it. Any thread may ask for names."""

    def __init__(self, parent: Path) -> None:
        """Raises OSError."""
        self.path = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent)
        with suppress(OSError):  # a file system other than ext4, which places files as it likes
            _mark(self.path)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._folder = self.path

    def new(self) -> str:
        """An unused path on the file system of the store."""
        number = next(self._numbers)
        if number % _FILES_A_FOLDER == 0:
            with self._lock, suppress(OSError):  # without room for a directory there may be room for the file
                folder = f"{self.path}/{number}.d"
                os.mkdir(folder, 0o700)
                self._folder = folder
        return f"{self._folder}/{number}"


def _mark(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        flags[0] |= _TOP_OF_HIERARCHIES
        fcntl.ioctl(descriptor, _SET_FLAGS, flags)
    finally:
        os.close(descriptor)
