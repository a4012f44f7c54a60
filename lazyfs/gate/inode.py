"""Inode numbers of the gate: a pure function of an object's name, so that any process that takes the connection over
derives them alike.

61 bits of a sha256. Two objects with equal numbers would show each other's bytes, but whoever makes such a pair chooses
both files himself; to meet the number of a file that exists already costs 2^60 hashes or so. The catalog holds every number against the
whole name all the same.
"""

from __future__ import annotations

from typing import Final

from lazyfs.store.content import SINGLE

ROOT: Final = 1
OBJECTS: Final = 2
"""Of the directory in which overlays look for objects."""
NOWHERE: Final = 3
"""Of the directory in which they look last."""
_FIRST_RECORD: Final = 1 << 16
_OBJECT: Final = 1 << 62


def inode_of(name: str) -> int:
    """Of an object; `name` is one (`sha256-HEX` or `chunks-HEX`)."""
    bits = int(name[7:23], 16) >> 3
    return _OBJECT | bits << 1 | (not name.startswith(SINGLE))


def record_inode(number: int) -> int:
    """Of the directory `record-NUMBER`."""
    return _FIRST_RECORD + number


def record_number(inode: int) -> int | None:
    """The NUMBER of a recording directory's inode; None for all others."""
    return inode - _FIRST_RECORD if _FIRST_RECORD <= inode < _OBJECT else None
