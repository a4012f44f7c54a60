"""Removes trees made by a container or an image: rm -r for hostile trees."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


def remove_tree(top: Path) -> None:
    """Remove a directory and its contents without following links or crossing mounts. A missing directory is not an error. Raises OSError.

    Directories may be nested deeper than a path, a stack or the limit of open files allows, and hold more names than fit into
    memory. So the contents of each are moved up before they are removed, and never listed in full.
    """
    place = os.fsencode(top)
    try:
        device = os.lstat(place).st_dev
    except FileNotFoundError:
        return
    prefix = place + b"/" + os.urandom(6).hex().encode() + b"-"
    numbers = itertools.count()
    while not _is_removed(place):
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                if os.lstat(entry.path).st_dev != device:
                    raise OSError(errno.EBUSY, f"{os.fsdecode(entry.path)} is mounted")
                while not _is_removed(entry.path):
                    _empty(entry.path, prefix, numbers)


def _empty(directory: bytes, prefix: bytes, numbers: Iterator[int]) -> None:
    """Remove the files, and move each directory to `prefix` plus the next number."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.rename(entry.path, prefix + str(next(numbers)).encode())
            else:
                os.unlink(entry.path)


def _is_removed(directory: bytes) -> bool:
    """Try to remove the directory; False if it is not empty."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True
