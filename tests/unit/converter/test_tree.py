"""Ways through the merged tree."""

from __future__ import annotations

import pytest

from converter.tree import Node, Tree
from lazyfs.errors import InvalidTar
from lazyfs.format.entry import Entry


def tree_of(*entries: Entry) -> Tree:
    tree = Tree()
    for entry in entries:
        parent, _, base = entry.name.rpartition(b"/")
        children = tree.make(parent, 0, "t")[1].children
        assert children is not None
        children[base] = Node(entry, 0)
    return tree


LINKS = tree_of(
    Entry(b"usr/lib/f", "reg"),
    Entry(b"lib", "symlink", link=b"usr/lib"),
    Entry(b"abs", "symlink", link=b"/lib/../lib/."),
    Entry(b"usr/up", "symlink", link=b"../../../usr"),
    Entry(b"loop", "symlink", link=b"loop/x"),
    Entry(b"dead", "symlink", link=b"no/where"),
)


@pytest.mark.parametrize(
    ("path", "name", "links"),
    [
        (b"", b"", []),
        (b"/usr//lib/./f", b"usr/lib/f", []),
        (b"lib/f", b"usr/lib/f", [b"lib"]),
        (b"abs/f", b"usr/lib/f", [b"abs", b"lib"]),
        (b"abs", b"usr/lib", [b"abs", b"lib"]),
        (b"usr/up/up/lib", b"usr/lib", [b"usr/up", b"usr/up"]),
        (b"../../lib/f", b"usr/lib/f", [b"lib"]),
        (b"usr/lib/../../lib/f", b"usr/lib/f", [b"lib"]),
        (b"usr/missing/../lib", b"usr/lib", []),
    ],
)
def test_a_path_leads_somewhere(path: bytes, name: bytes, links: list[bytes]) -> None:
    """Symbolic links are followed and told, dots taken as they are, and the root is the top."""
    way = LINKS.follow(path)
    assert way.node is not None
    assert (way.name, [link for link, _ in way.links]) == (name, links)


@pytest.mark.parametrize("path", [b"missing", b"usr/lib/f/x", b"loop", b"loop/y", b"dead"])
def test_a_path_may_lead_nowhere(path: bytes) -> None:
    """Nothing there, something else than a directory, a circle."""
    assert LINKS.follow(path).node is None


def test_directories_are_made_where_they_are_missing() -> None:
    """Through a dangling link, too; with parents, and as root's."""
    tree = tree_of(Entry(b"dead", "symlink", link=b"no/where"))
    name, _ = tree.make(b"dead/deep", 3, "t")
    assert name == b"no/where/deep"
    made = tree.follow(b"no/where").node
    assert made is not None
    assert (made.entry, made.layer) == (Entry(b"no/where", "dir", 0o755), 3)


def test_what_a_path_steps_back_from_is_not_made() -> None:
    """A link may lead through what is missing and out of it again."""
    tree = tree_of(Entry(b"l", "symlink", link=b"a/../b"))
    assert tree.make(b"l/c", 0, "t")[0] == b"b/c"
    assert tree.follow(b"a").node is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"usr/lib/f", "'usr/lib/f' should be a directory, and 'usr/lib/f' is a reg"),
        (b"usr/lib/f/x", "'usr/lib/f/x' should be a directory, and 'usr/lib/f' is a reg"),
        (b"loop", "more than 255 symbolic links"),
        (b"usr/.wh.x", "lies in a whiteout"),
    ],
)
def test_what_cannot_be_made(path: bytes, message: str) -> None:
    """Something stands in the way."""
    with pytest.raises(InvalidTar, match=f"^t: .*{message}"):
        LINKS.make(path, 0, "t")
