"""Walking a path through an image's own links."""

from __future__ import annotations

import pytest

from lazyfs.errors import LazyfsError, NotFound
from lazyfs.format.entry import Entry
from lazyfs.vfs.path import resolve
from lazyfs.vfs.tree import Tree

TREE = Tree(
    [
        [
            Entry(b"usr/bin/sh", "reg", size=1),
            Entry(b"bin", "symlink", link=b"usr/bin"),
            Entry(b"abs", "symlink", link=b"/bin/sh"),
            Entry(b"out", "symlink", link=b"../../../usr"),
            Entry(b"loop", "symlink", link=b"loop"),
        ]
    ]
)


@pytest.mark.parametrize("path", [b"/usr/bin/sh", b"bin/sh", b"/abs", b"out/bin/./sh", b"usr/../bin//sh"])
def test_links_are_followed_inside_of_the_image(path: bytes) -> None:
    """Absolute targets start at the image's root, and `..` does not leave it."""
    assert resolve(TREE, path) is TREE.find(b"usr/bin/sh")


@pytest.mark.parametrize("path", [b"nothing", b"bin/sh/x", b"usr/nothing/.."])
def test_what_is_not_there_is_named(path: bytes) -> None:
    """The message holds the path that was asked for."""
    with pytest.raises(NotFound, match=path.decode().replace("/", ".")):
        resolve(TREE, path)


def test_circle_of_links_ends() -> None:
    """A link to itself is an error in words."""
    with pytest.raises(LazyfsError, match="more than 40 symbolic links"):
        resolve(TREE, b"loop")
