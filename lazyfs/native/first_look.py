"""A program that looks at every name of a tree once, and prints nothing: `python first_look.py FD`, FD its root, open.

A full pull has just made all its files when their first container starts, so the kernel still has their inodes and names. Ours it
reads from an EROFS image at their first lookup, which makes the first walk of an image's first container half as slow again. So
lazyfsd starts this beside a mount whose layers the kernel has not had until now, on another overlay of the same layers: what is
looked up there stays known below every overlay of them (12 us a file, at low priority; the kernel takes the memory back when
it needs it). It runs on its own, as a file and with nothing of lazyfs, because its start is part of what it saves.
"""

import os
import sys
from contextlib import suppress

_NICE = 10


def look(root: int) -> None:
    """stat everything below the directory behind the descriptor `root`. What cannot be looked at is passed over."""
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
    look(int(sys.argv[1]))
