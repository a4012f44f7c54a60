"""What `lazyfs ls` prints of odd names."""

from __future__ import annotations

from lazyfs.cli.ls import _line
from lazyfs.format.entry import Entry
from lazyfs.vfs.tree import Tree


def test_names_do_not_command_the_terminal() -> None:
    """One line an entry, without control characters; bytes that are not UTF-8 stay as they are."""
    tree = Tree([[Entry(b"a\nb\x1b[2J\xff", "symlink", link=b"\x07c")]])
    line = _line(*next(iter((tree.root.children or {}).items())))
    assert line.endswith(b" a\\x0ab\\x1b[2J\xff -> \\x07c")
