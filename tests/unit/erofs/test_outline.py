"""Stacks of images as overlayfs shows them: random ones against the merged tree, and case by case what a tree cannot express."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.erofs.outline import Outline, root_is_opaque
from lazyfs.errors import InvalidToc
from lazyfs.format.entry import Entry
from lazyfs.store.content import content_of
from lazyfs.vfs.tree import Node, Tree
from tests.metadata_images import image_of, stacked
from tests.small_layers import CONTENTS, file, layers_of_entries
from tests.tree import Record, walk


def put_objects(folder: Path) -> Path:
    """A directory of the objects that the files of these tests consist of."""
    folder.mkdir(exist_ok=True)
    for content in CONTENTS[1:]:
        (folder / content_of(file(b"", content).chunks).name).write_bytes(content)
    return folder


def seen(layers: Sequence[Sequence[Entry]], folder: Path) -> dict[bytes, Record]:
    """All that overlayfs shows of a stack, lowest layer first."""
    with stacked(layers, put_objects(folder / "objects"), folder) as at:
        return walk(at)


def names(layers: Sequence[Sequence[Entry]], folder: Path) -> set[bytes]:
    """The paths only."""
    return set(seen(layers, folder)) - {b"."}


def expected(layers: Sequence[Sequence[Entry]]) -> dict[bytes, Record]:
    """The merged tree as records. A tree drops what a layer says about overlayfs; natively the container sees it as it is."""
    tree = Tree(layers)
    said = [{entry.name: entry for entry in layer} for layer in layers]
    return {shown or b".": _record(node, said, layers) for shown, node in tree.walk()}


def _record(node: Node, said: list[dict[bytes, Entry]], layers: Sequence[Sequence[Entry]]) -> Record:
    entry = node.entry
    links = [
        other
        for other in layers[node.layer]
        if other.type == "hardlink" and other.link == entry.name and not other.name.rpartition(b"/")[2].startswith(b".wh.")
    ]
    named = said[node.layer].get(entry.name)
    content = next((one for one in CONTENTS if file(b"", one).chunks == entry.chunks), b"")
    return Record(
        type=entry.type,
        mode=0o777 if entry.type == "symlink" else entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=len(entry.link) if entry.type == "symlink" else entry.size,
        mtime_ns=entry.mtime_ns,
        link=entry.link,
        nlink=0 if entry.type == "dir" else 1 + len(links),
        xattrs=tuple((key.decode(), value) for key, value in (named.xattrs if named else ()) if _is_kept(key, entry.type)),
        rdev=(entry.major, entry.minor),
        sha256=hashlib.sha256(content).hexdigest() if entry.type == "reg" else "",
    )


def _is_kept(key: bytes, kind: str) -> bool:
    return key.startswith((b"security.", b"trusted.")) or (key.startswith(b"user.") and kind in {"reg", "dir"})


@pytest.mark.erofs
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(layers_of_entries(), min_size=2, max_size=4))
def test_overlayfs_shows_the_merged_tree(layers: list[list[Entry]]) -> None:
    """Whatever the layers, fsck.erofs passes on each image, and every fact about every path is the merged tree's."""
    with tempfile.TemporaryDirectory() as folder:
        assert seen(layers, Path(folder)) == expected(layers)


@settings(max_examples=150)
@given(st.lists(layers_of_entries(), min_size=2, max_size=3))
def test_only_what_is_implied_is_inherited(layers: list[list[Entry]]) -> None:
    """Given everything below, a layer takes no more from it than given only its implied directories."""
    *below, layer = layers
    everything = {path: node.entry for path, node in Tree(below).walk()}
    asked = {path: everything[path] for path in Outline(layer).implied() if path in everything}
    assert image_of(layer, everything) == image_of(layer, asked)


def test_implied_directories_are_those_whose_attributes_come_from_below() -> None:
    """Parents nobody names, of whiteouts too; not those that the layer recreates, and not those it names later."""
    entries = [
        file(b"a/b/f"),
        file(b"c/.wh.x"),
        file(b".wh.d"),
        file(b"d/e/f"),
        file(b"o/.wh..wh..opq"),
        file(b"o/p/f"),
        file(b"n/f"),
    ]
    assert Outline([*entries, Entry(b"n", "dir"), Entry(b"", "dir")]).implied() == (b"a", b"a/b", b"c", b"o")
    assert Outline([]).implied() == (b"",)


def test_root_is_opaque_by_its_own_marker_only() -> None:
    """Another directory's marker, or a name that looks like it, is none of the root's."""
    assert root_is_opaque([file(b"a"), file(b".wh..wh..opq")])
    assert not root_is_opaque([file(b"a/.wh..wh..opq"), file(b".wh..wh.opq"), file(b".wh.a")])


@pytest.mark.erofs
def test_a_directory_made_again_is_another_one(tmp_path: Path) -> None:
    """`.wh.d` beside d/: nothing of the old one shows, not even its owner where the layer does not name it."""
    lower = [Entry(b"d", "dir", uid=5, mode=0o700), Entry(b"d/s", "dir", uid=5), file(b"d/s/old"), file(b"d/old")]
    found = seen([lower, [file(b".wh.d"), file(b"d/s/new")]], tmp_path)
    assert set(found) == {b".", b"d", b"d/s", b"d/s/new"}
    assert {(found[path].uid, found[path].mode) for path in (b"d", b"d/s")} == {(0, 0o755)}


@pytest.mark.erofs
def test_no_listing_names_a_whiteout(tmp_path: Path) -> None:
    """Not in a directory that one layer alone has, not in an opaque one, not in one whose whiteouts hide nothing."""
    lower = [file(b"alone/.wh.x"), file(b"alone/f"), file(b".wh.y")]
    upper = [file(b"opaque/.wh.x"), file(b"opaque/.wh..wh..opq"), file(b"opaque/f"), file(b"nowhere/.wh.x")]
    for number, layers in enumerate(([lower], [lower, upper], [lower, upper, []])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with stacked(layers, put_objects(folder / "objects"), folder) as at:
            for directory in at.iterdir():
                assert os.listdir(directory) == ["f"]
            assert "y" not in os.listdir(at)


@pytest.mark.erofs
def test_an_opaque_root_ends_the_stack(tmp_path: Path) -> None:
    """Nothing below is seen but the root's own attributes, which the opaque layer does not name."""
    found = seen([[Entry(b"", "dir", mode=0o700), file(b"a")], [file(b".wh..wh..opq"), file(b"b")], [file(b"c")]], tmp_path)
    assert set(found) == {b".", b"b", b"c"} and found[b"."].mode == 0o700


@pytest.mark.erofs
def test_paths_as_deep_as_names_go(tmp_path: Path) -> None:
    """Two thousand directories, one in the other, in both layers: the upper one's opaque mark half way hides the lower one's file."""
    layers = [[file(b"d/" * 2047 + b"f")], [file(b"d/" * 2047 + b"g"), file(b"d/" * 1000 + b".wh..wh..opq")]]
    with stacked(layers, put_objects(tmp_path / "objects"), tmp_path) as at:
        folder = os.open(at, os.O_RDONLY)
        for _ in range(2047):
            below = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        assert os.listdir(folder) == ["g"]
        os.close(folder)


@pytest.mark.erofs
def test_a_device_0_0_is_a_whiteout(tmp_path: Path) -> None:
    """As it would be in an unpacked layer: it hides what is below, and is not shown; nor is a hard link to it."""
    lower = [file(b"a"), file(b"b"), file(b"c")]
    upper = [Entry(b"a", "char"), Entry(b"b", "hardlink", link=b"a"), Entry(b"d/x", "char"), file(b"d/f")]
    assert names([lower, upper], tmp_path) == {b"c", b"d", b"d/f"}


@pytest.mark.erofs
def test_whiteouts_with_names_that_lead_elsewhere_are_nothing(tmp_path: Path) -> None:
    """`.wh.`, `.wh..` and `.wh...` hide the empty name, `.` and `..`, which no directory has to give."""
    assert names([[file(b"d/a")], [file(b"d/.wh."), file(b"d/.wh.."), file(b"d/.wh..."), file(b"d/b")]], tmp_path) == {
        b"d",
        b"d/a",
        b"d/b",
    }


@pytest.mark.erofs
def test_landmarks_and_the_toc_are_not_shown(tmp_path: Path) -> None:
    """In the root only: elsewhere these are names like others. A hard link to one shows nothing."""
    own = [
        file(name) for name in (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark", b"d/.prefetch.landmark")
    ]
    assert names([[*own, Entry(b"l", "hardlink", link=b".prefetch.landmark")]], tmp_path) == {b"d", b"d/.prefetch.landmark"}


@pytest.mark.erofs
def test_a_layers_own_overlay_attributes_reach_no_object(tmp_path: Path) -> None:
    """Redirected to an object, opaque, a whiteout by attribute: overlayfs obeys none of it, and shows it as the layer says it."""
    secret = put_objects(tmp_path / "objects") / content_of(file(b"", b"one").chunks).name
    redirect = (
        (b"trusted.overlay.metacopy", b""),
        (b"trusted.overlay.redirect", f"/{secret.name}".encode()),
        (b"user.overlay.metacopy", b""),
        (b"user.overlay.redirect", f"/{secret.name}".encode()),
    )
    lower = [file(b"d/below"), file(b"d/e/below"), file(b"hidden")]
    upper = [
        file(b"empty", xattrs=redirect),
        file(b"full", b"another", xattrs=redirect),
        Entry(b"d", "dir", xattrs=((b"trusted.overlay.opaque", b"x"),)),
        Entry(b"d/e", "dir", xattrs=((b"trusted.overlay.opaque", b"y"), (b"trusted.overlay.redirect", b"/d"))),
        file(b"d/white", xattrs=((b"trusted.overlay.whiteout", b""),)),
    ]
    found = seen([lower, upper], tmp_path)
    assert found[b"empty"].size == 0 and found[b"empty"].sha256 == hashlib.sha256(b"").hexdigest()
    assert found[b"full"].sha256 == hashlib.sha256(b"another").hexdigest()
    assert {b"d/below", b"d/e/below", b"d/white"} <= set(found) and b"d/e/white" not in found
    said = {entry.name: tuple((key.decode(), value) for key, value in entry.xattrs) for entry in upper}
    assert {name: found[name].xattrs for name in said} == said


@pytest.mark.erofs
def test_unescaped_attributes_would_reach_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack of the test before this one works where the escape is left out: that test is able to fail."""
    monkeypatch.setattr("lazyfs.erofs.xattrs._ESCAPED", b"trusted.overlay.")
    secret = put_objects(tmp_path / "objects") / content_of(file(b"", b"x" * 5000).chunks).name
    planted = ((b"trusted.overlay.metacopy", b""), (b"trusted.overlay.redirect", f"/{secret.name}".encode()))
    entry = file(b"evil", xattrs=planted)
    found = seen([[entry]], tmp_path)
    assert found[b"evil"].sha256 == hashlib.sha256(b"x" * 5000).hexdigest()


@pytest.mark.erofs
def test_an_overlay_attribute_too_long_to_be_escaped_is_left_out(tmp_path: Path) -> None:
    """overlayfs could list it, and not read it."""
    longest = b"trusted.overlay." + b"n" * (255 - 24)
    entry = file(b"f", xattrs=((longest, b"1"), (longest + b"n", b"2")))
    assert seen([[entry]], tmp_path)[b"f"].xattrs == ((longest.decode(), b"1"),)


@pytest.mark.parametrize("name", [b"sha256-00/x", b"chunks-", b".wh.sha256-" + b"0" * 64])
def test_a_name_that_objects_have_is_refused_in_the_root(name: bytes) -> None:
    """A base image's `/sha256-…` would be taken for the data of files in the layers above it."""
    with pytest.raises(InvalidToc, match="in its root"):
        Outline([file(name)])
    Outline([file(b"d/" + name)])


@pytest.mark.parametrize(
    "entries",
    [
        [file(b"a"), file(b"a/b")],
        [file(b"a/b"), file(b"a")],
        [file(b"a"), Entry(b"a", "dir")],
        [Entry(b"a", "dir"), file(b"a")],
        [file(b"a"), file(b"a")],
        [file(b"a"), file(b"a/.wh.b")],
    ],
)
def test_a_name_is_one_thing(entries: list[Entry]) -> None:
    """What no TOC may say never becomes an image either."""
    with pytest.raises(InvalidToc, match="a'"):
        image_of(entries, {b"": Entry(b"", "dir"), b"a": Entry(b"a", "dir")})
