"""Inode numbers of the gate: a pure function of the object's name, so that every process that takes over the connection
computes the same numbers.

62 bits of a sha256 over the name. Not of the digest in the name, which is only a claim until bytes have arrived: a claim can
have any first bits. Matching the number of an existing object takes about 2^61 hashes, and an attacker who creates a pair of equal
numbers has chosen both names. The catalog compares every number's full name anyway.
"""

from __future__ import annotations

import hashlib
from typing import Final

ROOT: Final = 1
OBJECTS: Final = 2
"""The directory in which overlays look for objects."""
NOWHERE: Final = 3
"""The directory in which they look last."""
_FIRST_RECORD: Final = 1 << 16
_OBJECT: Final = 1 << 62


def inode_of(name: str) -> int:
    """The inode number of an object."""
    return _OBJECT | int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2


def record_inode(number: int) -> int:
    """The inode number of the directory `record-NUMBER`."""
    return _FIRST_RECORD + number


def record_number(inode: int) -> int | None:
    """The NUMBER of a recording directory's inode; None for all others."""
    return inode - _FIRST_RECORD if _FIRST_RECORD <= inode < _OBJECT else None
