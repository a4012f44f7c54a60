"""What a layer leaves behind: the same tree, whatever its tar went through to get there."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings

from lazyfs.errors import InvalidTar
from lazyfs.format.entry import OWN_NAMES, Entry
from lazyfs.format.whiteout import LeftOut
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.tree import LowerTree
from tests.tars import read
from tests.unit.converter.making import LAYERS, Item, convert_tar, tar_of
from tests.unit.eager.model import Model, Refused


def reg(name: bytes, data: bytes = b"", **facts: int) -> Item:
    return Entry(name, "reg", size=len(data), **facts), data


def folder(name: bytes, mode: int = 0o755, uid: int = 0, mtime_ns: int = 0, xattrs: tuple[tuple[bytes, bytes], ...] = ()) -> Item:
    return Entry(name, "dir", mode, uid, 0, mtime_ns, xattrs=xattrs), b""


def symlink(name: bytes, target: bytes) -> Item:
    return Entry(name, "symlink", 0o777, link=target), b""


def hardlink(name: bytes, target: bytes) -> Item:
    return Entry(name, "hardlink", link=target), b""


def outcome(*layers: list[Item]) -> list[tuple[bytes, str, bytes]]:
    """Name, type and content or link of what the converted topmost layer holds, without the landmark."""
    tree = LowerTree()
    for number, layer in enumerate(layers):
        converted = convert_tar(tar_of(layer), tree, number)
    return [(entry.name, entry.type, data or entry.link) for entry, data in converted.items if entry.name not in OWN_NAMES]


@given(LAYERS)
@settings(max_examples=400)
def test_converted_layers_unpack_to_the_same_tree(layers: list[list[Item]]) -> None:
    """Against the model: same types, owners, times, contents and hard links; and what it refuses, we refuse."""
    tree, before, after = LowerTree(), Model(), Model()
    for number, layer in enumerate(layers):
        tar = tar_of(layer)
        try:
            read(tar)
        except InvalidTar:
            assume(False)
        try:
            before.unpack(layer)
        except Refused:
            with pytest.raises(InvalidTar):
                convert_tar(tar, tree, number)
            return
        after.unpack(convert_tar(tar, tree, number).items)
        assert after.tree() == before.tree()


@given(LAYERS)
def test_a_converted_layer_is_consistent_in_itself(layers: list[list[Item]]) -> None:
    """Each name once, parents before what they hold, targets before links, whiteouts before what has their name."""
    tree = LowerTree()
    for number, layer in enumerate(layers):
        try:
            converted = convert_tar(tar_of(layer), tree, number)
        except InvalidTar:
            return
        seen: dict[bytes, Entry] = {}
        for entry, _ in converted.items:
            assert entry.name not in seen
            parent, base = entry.name.rpartition(b"/")[::2]
            assert not parent or seen[parent].type == "dir"
            if base == b".wh..wh..opq":
                assert not any(name.startswith(parent + b"/") if parent else True for name in seen if name not in OWN_NAMES)
            elif base.startswith(b".wh."):
                assert (parent + b"/" + base[4:] if parent else base[4:]) not in seen
            if entry.type == "hardlink":
                assert seen[entry.link].type not in {"dir", "hardlink"}
            seen[entry.name] = entry


def test_implied_directories_are_what_the_layers_below_say() -> None:
    """Owner, mode, time and attributes; root's, 0755 and 1970 if nothing else is given."""
    below = [folder(b"a", 0o700, 33, 5, ((b"user.k", b"v"),)), folder(b"a/b", 0o711)]
    tree = LowerTree()
    convert_tar(tar_of(below), tree)
    converted = convert_tar(tar_of([reg(b"a/b/x"), reg(b"new/y")]), tree, 1)
    assert [entry for entry, _ in converted.items if entry.type == "dir"] == [
        Entry(b"a", "dir", 0o700, 33, mtime_ns=5, xattrs=((b"user.k", b"v"),)),
        Entry(b"a/b", "dir", 0o711),
        Entry(b"new", "dir", 0o755),
    ]


def test_a_directory_that_was_removed_is_implied_again() -> None:
    """A whiteout in the same layer takes the old owner away."""
    below = [folder(b"a", 0o700), folder(b"b", 0o700), folder(b"b/c", 0o700)]
    assert outcome(below, [reg(b".wh.a"), reg(b"a/x"), reg(b"b/.wh..wh..opq"), reg(b"b/c/x")]) == [
        (b".wh.a", "reg", b""),
        (b"a", "dir", b""),
        (b"a/.wh..wh..opq", "reg", b""),
        (b"a/x", "reg", b""),
        (b"b", "dir", b""),
        (b"b/.wh..wh..opq", "reg", b""),
        (b"b/c", "dir", b""),
        (b"b/c/x", "reg", b""),
    ]
    tree = LowerTree()
    convert_tar(tar_of(below), tree)
    converted = convert_tar(tar_of([reg(b".wh.a"), reg(b"a/x"), reg(b"b/.wh..wh..opq"), reg(b"b/c/x")]), tree, 1)
    assert {entry.name: entry.mode for entry, _ in converted.items if entry.type == "dir"} == {
        b"a": 0o755,
        b"b": 0o700,
        b"b/c": 0o755,
    }


def test_a_directory_removed_and_made_again_is_opaque() -> None:
    """containerd and stargz-snapshotter would show the old content through it; umoci makes the same of both."""
    layer = [reg(b".wh.d"), folder(b"d"), reg(b"d/new")]
    assert outcome([folder(b"d"), reg(b"d/old")], layer) == [
        (b".wh.d", "reg", b""),
        (b"d", "dir", b""),
        (b"d/.wh..wh..opq", "reg", b""),
        (b"d/new", "reg", b""),
    ]


def test_a_link_below_that_becomes_a_directory_hides_nothing_behind_it() -> None:
    """Overlayfs marks the new directory opaque: that is about the directory, not about where the link led."""
    below = [folder(b"d"), reg(b"d/kept"), symlink(b"l", b"d")]
    tree, model = LowerTree(), Model()
    model.unpack(convert_tar(tar_of(below), tree).items)
    model.unpack(convert_tar(tar_of([folder(b"l"), reg(b"l/.wh..wh..opq"), reg(b"l/x")]), tree, 1).items)
    assert sorted(model.tree()) == [b"d", b"d/kept", b"l", b"l/x"]


def test_a_directory_that_was_a_file_for_a_while_is_empty_below() -> None:
    """The last of one name wins, but what it replaced is gone all the same."""
    assert outcome([folder(b"d"), reg(b"d/old")], [reg(b"d"), folder(b"d"), reg(b"d/new")]) == [
        (b"d", "dir", b""),
        (b"d/.wh..wh..opq", "reg", b""),
        (b"d/new", "reg", b""),
    ]


def test_names_lead_through_symbolic_links() -> None:
    """Of the layers below and of the same layer; absolute, relative, dangling; whiteouts as well."""
    below = [
        symlink(b"lib", b"usr/lib"),
        folder(b"usr"),
        folder(b"usr/lib"),
        reg(b"usr/lib/old"),
        symlink(b"gone", b"/opt/./x/.."),
    ]
    assert outcome(below, [reg(b"lib/new", b"1"), reg(b"lib/.wh.old"), reg(b"gone/y", b"2")]) == [
        (b"usr", "dir", b""),
        (b"usr/lib", "dir", b""),
        (b"usr/lib/.wh.old", "reg", b""),
        (b"usr/lib/new", "reg", b"1"),
        (b"opt", "dir", b""),
        (b"opt/y", "reg", b"2"),
    ]
    assert outcome([folder(b"d"), symlink(b"l", b"d"), reg(b"l/x", b"1"), hardlink(b"y", b"l/x")]) == [
        (b"d", "dir", b""),
        (b"l", "symlink", b"d"),
        (b"d/x", "reg", b"1"),
        (b"y", "hardlink", b"d/x"),
    ]


def test_the_last_of_one_name_wins() -> None:
    """A file for a file, a file for a directory with all in it, a directory's newer owner."""
    assert outcome([reg(b"a", b"1"), reg(b"b", b"2"), reg(b"a", b"3")]) == [(b"b", "reg", b"2"), (b"a", "reg", b"3")]
    assert outcome([folder(b"d"), reg(b"d/x"), reg(b"d", b"now a file")]) == [(b"d", "reg", b"now a file")]
    converted = convert_tar(tar_of([folder(b"d", 0o700), reg(b"d/x"), folder(b"d", 0o755)]))
    assert [(entry.name, entry.mode) for entry, _ in converted.items[1:]] == [(b"d", 0o755), (b"d/x", 0o755)]


def test_a_link_keeps_what_it_linked_to() -> None:
    """The first name is replaced afterwards: the second becomes the file, and a third links to that."""
    assert outcome([reg(b"a", b"old"), hardlink(b"b", b"a"), hardlink(b"c", b"a"), reg(b"a", b"new")]) == [
        (b"b", "reg", b"old"),
        (b"c", "hardlink", b"b"),
        (b"a", "reg", b"new"),
    ]


def test_links_have_the_attributes_of_their_target() -> None:
    """Runtimes differ on whether a link's own mode and owner count."""
    link = (Entry(b"l", "hardlink", 0o600, 9, 9, 9, link=b"a"), b"")
    converted = convert_tar(tar_of([reg(b"a", b"x", mode=0o4755, uid=5, mtime_ns=7), link]))
    assert converted.items[-1][0] == Entry(b"l", "hardlink", 0o4755, 5, 0, 7, link=b"a")


def test_entries_of_an_earlier_conversion_are_dropped() -> None:
    """Landmarks and TOC of the root; a file of that name elsewhere is a file."""
    old = [reg(b".prefetch.landmark", b"\x0f"), reg(b"stargz.index.json", b"{}"), reg(b".no.prefetch.landmark", b"\x0f")]
    assert outcome([*old, reg(b"d/stargz.index.json", b"1"), reg(b"a", b"2")]) == [
        (b"d", "dir", b""),
        (b"d/stargz.index.json", "reg", b"1"),
        (b"a", "reg", b"2"),
    ]


def test_whiteouts_that_hide_nothing_are_dropped() -> None:
    """In a directory that is nowhere; writing it would make that directory."""
    assert outcome([reg(b"nowhere/.wh.x"), reg(b"nowhere/.wh..wh..opq"), reg(b"a")]) == [(b"a", "reg", b"")]
    assert outcome([folder(b"d")], [reg(b"d/.wh.x"), reg(b".wh.y")]) == [
        (b".wh.y", "reg", b""),
        (b"d", "dir", b""),
        (b"d/.wh.x", "reg", b""),
    ]


def test_whiteouts_are_empty_files_whatever_they_were() -> None:
    """AUFS wrote them as hard links to a file that is not part of the image; only the name counts."""
    aufs = [reg(b".wh..wh.aufs", b"x"), hardlink(b".wh.gone", b".wh..wh.aufs"), folder(b"d"), folder(b"d/.wh.e")]
    assert outcome([*aufs, reg(b"a")]) == [
        (b".wh.gone", "reg", b""),
        (b"d", "dir", b""),
        (b"d/.wh.e", "reg", b""),
        (b"a", "reg", b""),
    ]


def test_what_a_link_leads_below_a_whiteout_is_left_out() -> None:
    """As an entry that is spelled so: no runtime but a full pull shows it, and that one by a directory named like a whiteout."""
    left_out = LeftOut()
    layer = read(tar_of([symlink(b"l", b".wh.d/e"), reg(b"l/x"), reg(b"l/.wh.y"), reg(b"a")]))
    index = index_layer(LowerTree(), layer, 0, "layer", left_out)
    assert set(index.inodes) == {b"l", b"a"} and not index.markers
    assert (left_out.below, left_out.first) == (1, b"l/x")


def test_a_link_to_what_has_a_name_of_the_formats_is_a_file() -> None:
    """The name goes, the file stays; so does a directory of such a name, with all in it."""
    own = [reg(b"stargz.index.json", b"mine"), hardlink(b"a", b"stargz.index.json"), hardlink(b"b", b"a")]
    assert outcome(own) == [(b"a", "reg", b"mine"), (b"b", "hardlink", b"a")]
    assert outcome([folder(b".prefetch.landmark"), reg(b".prefetch.landmark/x"), reg(b"a")]) == [(b"a", "reg", b"")]


def test_a_device_0_0_is_no_name_to_the_layers_above() -> None:
    """To overlayfs it is a whiteout: the next layer may make a directory there, which shows nothing of those below."""
    device = (Entry(b"d", "char"), b"")
    assert outcome([folder(b"d", 0o700), reg(b"d/x")], [device], [reg(b"d/y")]) == [(b"d", "dir", b""), (b"d/y", "reg", b"")]
    tree = LowerTree()
    tree.put([Entry(b"d/x", "reg"), Entry(b"e", "reg")], 0)
    tree.put([Entry(b"d", "char"), Entry(b"e", "hardlink", link=b"d")], 1)
    assert tree.root.children == {}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ([reg(b"a"), reg(b"a/b")], "'a' should be a directory, and 'a' is a reg"),
        ([reg(b"a"), reg(b"a/b/c")], "'a/b' should be a directory, and 'a' is a reg"),
        ([symlink(b"a", b"b"), symlink(b"b", b"a"), reg(b"a/x")], "more than 255 symbolic links"),
        ([folder(b"d"), symlink(b"l", b"d"), reg(b"d/a"), hardlink(b"l/a", b"d/a")], "not an earlier file"),
        ([folder(b"d"), reg(b"d/a"), reg(b"d"), hardlink(b"h", b"d/a")], "not an earlier file"),
    ],
)
def test_what_no_runtime_unpacks_is_refused(layer: list[Item], message: str) -> None:
    """With the layer, the name and the reason."""
    with pytest.raises(InvalidTar, match=f"^layer 7: .*{message}"):
        index_layer(LowerTree(), read(tar_of(layer)), 7, "layer 7")


def test_a_link_below_is_no_target() -> None:
    """A hard link cannot name a file of a lower layer."""
    tree = LowerTree()
    convert_tar(tar_of([symlink(b"l", b"d"), folder(b"d"), reg(b"d/a")]), tree)
    with pytest.raises(InvalidTar, match="not an earlier file"):
        convert_tar(tar_of([reg(b"l/b"), hardlink(b"x", b"l/b"), hardlink(b"y", b"d/a")]), tree, 1)
