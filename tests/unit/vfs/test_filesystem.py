"""The file system without FUSE: what stat is told."""

from __future__ import annotations

import os

from lazyfs.format.entry import Entry
from lazyfs.vfs.filesystem import attributes
from lazyfs.vfs.tree import Tree


def test_device_numbers_are_what_mknod_keeps_of_them() -> None:
    """A TOC may claim 32 bits each; a full pull shows 12 and 20, and a directory that cannot be listed helps nobody."""
    tree = Tree([[Entry(b"dev", "char", major=2**32 - 1, minor=2**31 + 5), Entry(b"tty", "char", major=5, minor=1)]])
    found = {name: attributes(node).rdev for name, node in tree.walk() if name}
    assert found == {b"dev": (0xFFF, 5), b"tty": (5, 1)}
    assert os.makedev(*found[b"dev"]) < 1 << 32
