"""Ways through the merged tree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from lazyfs.errors import InvalidTar
from lazyfs.format.bounds import Bounds
from lazyfs.format.entry import Entry
from lazyfs.layertar.tree import LowerTree, Node
from lazyfs.vfs.tree import Tree as MergedTree
from tests.unit.converter.making import LAYERS, Item, convert_tar, tar_of


def tree_of(*entries: Entry) -> LowerTree:
    tree = LowerTree()
    for entry in entries:
        parent, _, base = entry.name.rpartition(b"/")
        made = tree.make(parent, 0, "t")
        assert made is not None
        children = made[1].children
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
    """Symbolic links are followed and listed, dots are resolved, and the root is the top."""
    resolved = LINKS.resolve(path)
    assert resolved.node is not None
    assert (resolved.name, [link for link, _ in resolved.links]) == (name, links)


@pytest.mark.parametrize("path", [b"missing", b"usr/lib/f/x", b"loop", b"loop/y", b"dead"])
def test_a_path_may_lead_nowhere(path: bytes) -> None:
    """Nothing there, something else than a directory, a circle."""
    assert LINKS.resolve(path).node is None


def test_directories_are_made_where_they_are_missing() -> None:
    """Through a dangling link, too; with parents, and as root's."""
    tree = tree_of(Entry(b"dead", "symlink", link=b"no/where"))
    name, _ = tree.make(b"dead/deep", 3, "t")
    assert name == b"no/where/deep"
    made = tree.resolve(b"no/where").node
    assert made is not None
    assert (made.entry, made.layer) == (Entry(b"no/where", "dir", 0o755), 3)


def test_what_a_path_steps_back_from_is_not_made() -> None:
    """A link may lead through what is missing and out of it again."""
    tree = tree_of(Entry(b"l", "symlink", link=b"a/../b"))
    assert tree.make(b"l/c", 0, "t")[0] == b"b/c"
    assert tree.resolve(b"a").node is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"usr/lib/f", "'usr/lib/f' should be a directory, and 'usr/lib/f' is a reg"),
        (b"usr/lib/f/x", "'usr/lib/f/x' should be a directory, and 'usr/lib/f' is a reg"),
        (b"loop", "more than 255 symbolic links"),
    ],
)
def test_what_cannot_be_made(path: bytes, message: str) -> None:
    """Something stands in the way."""
    with pytest.raises(InvalidTar, match=f"^t: .*{message}"):
        LINKS.make(path, 0, "t")


def test_nothing_is_made_below_a_whiteout() -> None:
    """Nobody would show it."""
    assert LINKS.make(b"usr/.wh.x/y", 0, "t") is None
    assert LINKS.resolve(b"usr/.wh.x").node is None


def shown(tree: LowerTree) -> dict[bytes, tuple[str, int, bytes]]:
    """path -> (type, mode, link) of everything but the root."""
    found = {}
    pending = [(b"", tree.root)]
    while pending:
        path, node = pending.pop()
        for base, child in (node.children or {}).items():
            name = path + b"/" + base if path else base
            found[name] = (child.entry.type, child.entry.mode, child.entry.link)
            pending.append((name, child))
    return found


@given(LAYERS)
@settings(max_examples=300)
def test_a_described_layer_is_put_on_as_it_was_placed(layers: list[list[Item]]) -> None:
    """What is placed from a tar, and put on later from its description, is one tree, and the one that a mount merges."""
    placed, put = LowerTree(), LowerTree()
    described = []
    for number, layer in enumerate(layers):
        try:
            entries = convert_tar(tar_of(layer), placed, number).entries
        except InvalidTar:
            return
        put.put(entries, number)
        described.append(entries)
        assert shown(put) == shown(placed)
    merged = MergedTree(described)
    assert shown(put) == {path: (node.entry.type, node.entry.mode, node.entry.link) for path, node in merged.walk() if path}


def test_names_are_taken_as_they_are() -> None:
    """Foreign TOCs may name what leads through a link below: a mount puts a directory in its place, and so does this."""
    tree = LowerTree()
    tree.put([Entry(b"lib", "symlink", link=b"usr"), Entry(b"f", "reg"), Entry(b"gone", "reg")], 0)
    tree.put([Entry(b"lib/x", "reg"), Entry(b"f/y", "dir"), Entry(b".wh.gone", "reg"), Entry(b"none/.wh.z", "reg")], 1)
    assert {path: kind for path, (kind, _, _) in shown(tree).items()} == {
        b"lib": "dir",
        b"lib/x": "reg",
        b"f": "dir",
        b"f/y": "dir",
    }


def test_ways_are_counted() -> None:
    """3,000 directories, each reached through 255 links of 200 components: minutes, without the bound."""
    tree = LowerTree()
    entries = [Entry(b"l%d" % number, "symlink", link=b"x/../" * 100 + b"l%d" % (number + 1)) for number in range(255)]
    tree.put([*entries, Entry(b"l255", "dir")], 0)
    bounds = Bounds(0, "layer 1", InvalidTar)
    with pytest.raises(InvalidTar, match=r"^layer 1: its names and links take more than 10000000 steps to follow"):
        for number in range(3000):
            tree.make(b"l0/d%d" % number, 1, "layer 1", bounds)


def test_a_way_to_a_name_that_no_path_can_have() -> None:
    """Each link adds to what is missing; the directories would be made, each with all of its name."""
    tree = LowerTree()
    tree.put([Entry(b"l%d" % number, "symlink", link=b"a/" * 1000 + b"../" * 1000 + b"a/" * 1000) for number in range(3)], 0)
    with pytest.raises(InvalidTar, match=r"leads to a name of \d+ bytes, more than 4095"):
        tree.make(b"l0/" + b"b/" * 1500 + b"c", 1, "layer 1")


def test_directories_that_names_imply_are_counted() -> None:
    """A hundred names of 4,000 bytes imply 200,000 directories."""
    tree = LowerTree()
    bounds = Bounds(0, "layer 1", InvalidTar)
    with pytest.raises(InvalidTar, match=r"^layer 1: its names, links and attributes"):
        for number in range(100):
            tree.make(b"%d/" % number + b"d/" * 2000 + b"e", 1, "layer 1", bounds)
