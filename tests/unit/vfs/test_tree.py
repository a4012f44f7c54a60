"""The merge of layers, against a simple model and case by case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format.entry import Entry
from lazyfs.vfs.tree import ROOT_INO, Tree


def file(name: bytes, size: int = 0) -> Entry:
    """A regular file, identified by its size."""
    return Entry(name, "reg", size=size)


def shown(tree: Tree) -> dict[bytes, tuple[str, int]]:
    """path -> (type, size) of everything but the root."""
    return {path: (node.entry.type, node.entry.size) for path, node in tree.walk() if path}


def test_upper_file_replaces_lower() -> None:
    """The topmost layer that has a name wins."""
    assert shown(Tree([[file(b"a", 1)], [file(b"a", 2)]])) == {b"a": ("reg", 2)}


def test_whiteout_hides_the_layers_below_only() -> None:
    """`.wh.NAME` removes names below and never those of its own layer, in either order."""
    lower = [file(b"a", 1), file(b"b", 1)]
    for upper in ([file(b".wh.a"), file(b".wh.b"), file(b"b", 2)], [file(b"b", 2), file(b".wh.b"), file(b".wh.a")]):
        assert shown(Tree([lower, upper])) == {b"b": ("reg", 2)}


def test_whiteout_is_not_shown_and_may_hide_nothing() -> None:
    """A whiteout of a missing name is not an error, and adds no name."""
    assert shown(Tree([[file(b".wh.x"), file(b"d/.wh.y")]])) == {}


def test_opaque_directory_hides_what_is_below_it() -> None:
    """The marker empties the directory, wherever it stands in its layer."""
    lower = [Entry(b"d", "dir"), file(b"d/a", 1), file(b"d/s/b", 1)]
    upper = [Entry(b"d", "dir", mode=0o700), file(b"d/n", 2), file(b"d/.wh..wh..opq")]
    assert shown(Tree([lower, upper])) == {b"d": ("dir", 0), b"d/n": ("reg", 2)}


def test_opaque_root_ends_the_stack() -> None:
    """As umoci has it: nothing below an opaque root is seen."""
    assert shown(Tree([[file(b"a", 1)], [file(b".wh..wh..opq"), file(b"b", 2)]])) == {b"b": ("reg", 2)}


def test_directory_over_directory_merges_and_takes_the_upper_metadata() -> None:
    """Children stay, owner and mode are the upper one's, and `..` of the children leads to it."""
    tree = Tree(
        [[Entry(b"d", "dir", mode=0o755), Entry(b"d/s", "dir"), file(b"d/a", 1)], [Entry(b"d", "dir", mode=0o700, uid=3)]]
    )
    node = tree.find(b"d")
    assert node is not None and (node.entry.mode, node.entry.uid) == (0o700, 3)
    child = tree.find(b"d/s")
    assert child is not None and child.parent is node
    assert tree.find(b"d/a") is not None


def test_implied_directory_keeps_what_is_below() -> None:
    """A layer that names d/b and not d leaves d's metadata alone; a directory without an entry belongs to root, mode 0755."""
    tree = Tree([[Entry(b"d", "dir", mode=0o700, uid=33)], [file(b"d/b", 1), file(b"n/m/c", 1)]])
    assert (node := tree.find(b"d")) is not None and node.entry.uid == 33
    assert (node := tree.find(b"n/m")) is not None and (node.entry.mode, node.entry.uid) == (0o755, 0)


def test_directory_replaces_file_and_file_replaces_directory() -> None:
    """Neither shows anything of the other."""
    assert shown(Tree([[file(b"a", 1)], [file(b"a/b", 2)]])) == {b"a": ("dir", 0), b"a/b": ("reg", 2)}
    assert shown(Tree([[file(b"a/b", 1)], [file(b"a", 2)]])) == {b"a": ("reg", 2)}


def test_hard_links_are_one_inode_and_count_what_is_shown() -> None:
    """nlink is the number of names that are left, as in a tree that was unpacked."""
    links = [file(b"a", 5), Entry(b"b", "hardlink", link=b"a"), Entry(b"c", "hardlink", link=b"a")]
    tree = Tree([links])
    nodes = [tree.find(name) for name in (b"a", b"b", b"c")]
    assert nodes[0] is nodes[1] is nodes[2]
    assert nodes[0] is not None and nodes[0].nlink == 3
    tree = Tree([links, [file(b".wh.b"), file(b"c", 1)]])
    assert (node := tree.find(b"a")) is not None and node.nlink == 1


def test_what_is_reached_through_a_link_below_is_noted() -> None:
    """Runtimes unpack through the symbolic links of lower layers; `verify` wants to know where that makes a difference."""
    lower = [Entry(b"usr/lib/x", "reg"), Entry(b"lib", "symlink", link=b"usr/lib")]
    assert Tree([lower, [file(b"lib/y", 1)]]).replaced == [(1, b"lib")]
    assert Tree([lower, [file(b"lib/.wh.x")]]).replaced == [(1, b"lib")]
    assert Tree([lower, [file(b"usr/lib/y", 1), file(b"none/.wh.x")]]).replaced == []


def test_format_entries_are_hidden() -> None:
    """Landmarks and the TOC's own entry are not part of the image, but only at the root."""
    own = [file(b".prefetch.landmark", 1), file(b"stargz.index.json", 1), file(b"d/stargz.index.json", 1)]
    assert set(shown(Tree([own]))) == {b"d", b"d/stargz.index.json"}


def test_a_device_0_0_is_a_whiteout() -> None:
    """It hides the name below and is not shown, nor is a hard link to it; its parent is there. mknod keeps 12 and 20 bits."""
    lower = [file(b"a", 1), file(b"b", 1), file(b"c", 1), file(b"e/x", 1)]
    devices = [Entry(b"a", "char"), Entry(b"b", "hardlink", link=b"a"), Entry(b"e", "char", major=1 << 12, minor=1 << 20)]
    upper = [*devices, Entry(b"d/x", "char"), Entry(b"zero", "block")]
    assert shown(Tree([lower, upper])) == {b"c": ("reg", 1), b"d": ("dir", 0), b"zero": ("block", 0)}
    assert shown(Tree([lower, upper, [file(b"e/y", 2)]]))[b"e/y"] == ("reg", 2)


def test_inodes_are_a_function_of_layer_and_position() -> None:
    """Equal files are different inodes, two merges agree, and no number is used twice."""
    layers = [[Entry(b"d", "dir"), file(b"d/a", 1), file(b"d/b", 1)], [file(b"i/c", 1), Entry(b"e", "dir")]]
    first, second = Tree(layers), Tree(layers)
    inodes = {path: node.ino for path, node in first.walk()}
    assert inodes == {path: node.ino for path, node in second.walk()}
    assert len(set(inodes.values())) == len(inodes)
    assert inodes[b""] == ROOT_INO and inodes[b"d/a"] == 3


def test_named_root_gives_the_root_its_metadata() -> None:
    """An entry for the root itself is taken, and stays inode 1."""
    tree = Tree([[Entry(b"", "dir", mode=0o555)]])
    assert (tree.root.ino, tree.root.entry.mode) == (ROOT_INO, 0o555)


_NAMES = st.sampled_from([b"a", b"b", b"c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(b"/".join)
_OPS = st.lists(st.tuples(st.sampled_from(["file", "dir", "whiteout", "opaque"]), _PATHS), max_size=8)


@given(st.lists(_OPS, min_size=1, max_size=4))
def test_merge_equals_a_model_of_paths(layers: list[list[tuple[str, bytes]]]) -> None:
    """A dictionary of paths, unpacked layer by layer as a full pull does it, shows the same."""
    entries: list[list[Entry]] = []
    model: dict[bytes, tuple[str, int]] = {}

    def remove(path: bytes) -> None:
        for other in [other for other in model if other == path or other.startswith(path + b"/")]:
            del model[other]

    for number, ops in enumerate(layers, 1):
        layer: dict[bytes, Entry] = {}
        for kind, path in ops:
            parent = path.rpartition(b"/")[0]
            parents = [path[:end] for end in range(len(path)) if path[end : end + 1] == b"/"]
            if any(layer.get(each, Entry(each, "dir")).type != "dir" for each in parents):
                continue  # a layer is consistent in itself: parse_toc and read_tar see to that
            base = path.rpartition(b"/")[2]
            if kind == "whiteout":
                layer[parent + b"/.wh." + base if parent else b".wh." + base] = file(b"")
            elif kind == "opaque":
                if layer.get(path, Entry(path, "dir")).type == "dir":
                    layer[path + b"/.wh..wh..opq"] = file(b"")
            elif kind == "file":
                if path not in layer and not any(other.startswith(path + b"/") for other in layer):
                    layer[path] = file(path, number)
            elif layer.get(path, Entry(path, "dir")).type == "dir":
                layer[path] = Entry(path, "dir")
        named = [Entry(name, entry.type, size=entry.size) for name, entry in layer.items()]
        entries.append(named)
        for entry in named:
            parent, _, base = entry.name.rpartition(b"/")
            kept = model.get(parent)
            if base == b".wh..wh..opq":
                for other in [other for other in model if other.startswith(parent + b"/")]:
                    del model[other]
            elif base.startswith(b".wh.") and (not parent or (kept and kept[0] == "dir")):
                remove(parent + b"/" + base[4:] if parent else base[4:])
        for entry in named:
            parent, _, base = entry.name.rpartition(b"/")
            if base.startswith(b".wh."):
                continue
            pieces = entry.name.split(b"/")
            for depth in range(1, len(pieces)):
                above = b"/".join(pieces[:depth])
                if model.get(above, ("", 0))[0] != "dir":
                    remove(above)
                    model[above] = ("dir", 0)
            if not (entry.type == "dir" and model.get(entry.name, ("", 0))[0] == "dir"):
                remove(entry.name)
                model[entry.name] = (entry.type, entry.size)
    assert shown(Tree(entries)) == model


def test_xattrs_that_no_full_pull_could_set_are_not_shown() -> None:
    """Of unknown namespaces, on anything; user.* but on files and directories; access lists of symbolic links."""
    names = (b"btrfs.x", b"security.x", b"system.nfs4_acl", b"trusted.x", b"user.", b"user.x", b"x")
    acls = (b"system.posix_acl_access", b"system.posix_acl_default")
    acl = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
    xattrs = tuple(sorted([(name, b"v") for name in names] + [(name, acl) for name in acls]))
    tree = Tree([[Entry(kind.encode(), kind, link=b"x", xattrs=xattrs) for kind in ("dir", "reg", "symlink", "fifo", "block")]])
    found = {path: [key for key, _ in node.entry.xattrs] for path, node in tree.walk() if path}
    everywhere = [b"security.x", b"system.posix_acl_access", b"trusted.x"]
    assert found[b"dir"] == [b"security.x", *acls, b"trusted.x", b"user.x"]
    assert found[b"reg"] == [*everywhere, b"user.x"]
    assert found[b"fifo"] == found[b"block"] == everywhere
    assert found[b"symlink"] == [b"security.x", b"trusted.x"]
    assert tree.has_acls and not Tree([[Entry(b"f", "reg", xattrs=((b"user.x", b"v"),))]]).has_acls


@pytest.mark.parametrize(
    "value", [b"", b"rubbish", b"\2\0\0\0", b"\3\0\0\0" + bytes(8), b"\2\0\0\0" + bytes(8), b"\2\0\0\0" + bytes(7)]
)
def test_what_is_no_access_list_is_not_shown(value: bytes) -> None:
    """Unpackers are refused it and go on; the kernel would fail every listing of the file's attributes."""
    tree = Tree([[Entry(b"f", "reg", xattrs=((b"system.posix_acl_access", value),))]])
    assert (node := tree.find(b"f")) is not None and node.entry.xattrs == () and not tree.has_acls


def test_overlay_xattrs_are_not_shown() -> None:
    """As on overlayfs; put below one, they would have it open whatever file they name."""
    hostile = ((b"trusted.overlay.redirect", b"/x"), (b"trusted.overlaid", b"1"), (b"user.overlay.opaque", b"y"))
    tree = Tree([[Entry(b"", "dir", xattrs=hostile), Entry(b"d", "dir", xattrs=hostile), Entry(b"f", "reg", xattrs=hostile)]])
    for _, node in tree.walk():
        assert [key for key, _ in node.entry.xattrs] == [b"trusted.overlaid", b"user.overlay.opaque"]
