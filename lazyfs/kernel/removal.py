"""Removing a tree that a container or an image has made: rm -r, for trees that mean ill."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


def remove_tree(top: Path) -> None:
    """Remove a directory, whatever is in it, following nothing and crossing no mount. Nothing there is no error. Raises OSError.

    A container or an image can nest directories deeper than a path, a stack or the number of open files reaches, and fill them
    beyond memory: so what lies in one is moved up before it is removed, and no list is made.
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
    """Remove the files, and move the directories to `prefix` and the next number."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.rename(entry.path, prefix + str(next(numbers)).encode())
            else:
                os.unlink(entry.path)


def _is_removed(directory: bytes) -> bool:
    """Try to remove it; False where something is in it."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True
