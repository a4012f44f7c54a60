"""Inode numbers of the gate: a pure function of an object's name, so that any process that takes the connection over
derives them alike.

62 bits of a sha256 over the name. Not of the digest in it: that is a claim until bytes have come, and a claim with any first bits
costs nothing. To meet the number of an object that exists costs 2^61 hashes or so; whoever makes a pair of equal numbers chooses both
names himself. The catalog holds every number against the whole name all the same.
"""

from __future__ import annotations

import hashlib
from typing import Final

ROOT: Final = 1
OBJECTS: Final = 2
"""Of the directory in which overlays look for objects."""
NOWHERE: Final = 3
"""Of the directory in which they look last."""
_FIRST_RECORD: Final = 1 << 16
_OBJECT: Final = 1 << 62


def inode_of(name: str) -> int:
    """Of an object."""
    return _OBJECT | int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2


def record_inode(number: int) -> int:
    """Of the directory `record-NUMBER`."""
    return _FIRST_RECORD + number


def record_number(inode: int) -> int | None:
    """The NUMBER of a recording directory's inode; None for all others."""
    return inode - _FIRST_RECORD if _FIRST_RECORD <= inode < _OBJECT else None
