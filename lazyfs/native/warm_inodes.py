"""A program that stats every name of a tree once and prints nothing: `python warm_inodes.py FD`, FD being the tree's root, open.

After a full pull the kernel still has the inodes and names of all files, because it has just created them. For a lazy mount it reads
each from an EROFS image at the first lookup, which makes the first walk of an image's first container half as slow again. So lazyfsd
runs this beside a mount whose layers were not mounted before, on another overlay of the same layers: what is looked up there stays
cached below every overlay of them. It costs 12 us a file, at low priority, and the kernel can reclaim the memory. The program runs as
a file and imports nothing of lazyfs, because its start-up would cost more than it saves.
"""

import os
import sys
from contextlib import suppress

_NICE = 10


def warm_inodes(root: int) -> None:
    """stat everything below the directory behind the descriptor `root`. What cannot be read is skipped."""
    folders = ["."]
    while folders:
        path = folders.pop()
        with suppress(OSError):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{path}/{entry.name}")
                        with suppress(OSError):
                            entry.stat(follow_symlinks=False)
            finally:
                os.close(folder)


if __name__ == "__main__":
    os.nice(_NICE)
    warm_inodes(int(sys.argv[1]))
