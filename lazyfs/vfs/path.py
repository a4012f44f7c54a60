"""Resolves paths as a process inside the image would: symbolic links are followed and never lead out of it."""

from __future__ import annotations

from typing import Final

from lazyfs.errors import LazyfsError, NotFound, show
from lazyfs.vfs.tree import Node, Tree

_MOST_LINKS: Final = 40
"""The kernel's limit."""


def resolve(tree: Tree, path: bytes) -> Node:
    """The node at `path`, following a symbolic link in its last component too. Raises NotFound, or LazyfsError for a loop."""
    todo = path.split(b"/")[::-1]
    node = tree.root
    links = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        children = node.children
        if children is None:
            raise NotFound(f"{show(path)} leads through {show(node.entry.name)}, which is not a directory")
        if part == b"..":
            node = node.parent or tree.root
            continue
        child = children.get(part)
        if child is None:
            raise NotFound(f"the image has no {show(path)}")
        if child.entry.type == "symlink":
            links += 1
            if links > _MOST_LINKS:
                raise LazyfsError(f"{show(path)} leads through more than {_MOST_LINKS} symbolic links")
            todo.extend(child.entry.link.split(b"/")[::-1])
            if child.entry.link.startswith(b"/"):
                node = tree.root
            continue
        node = child
    return node
