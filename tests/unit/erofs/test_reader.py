"""What images show for directories, against the merged tree; and images that are none."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.erofs.outline import Outline
from lazyfs.erofs.reader import inherited_from
from lazyfs.errors import StoreUnusable
from lazyfs.format.entry import Entry
from lazyfs.vfs.tree import Tree
from tests.metadata_images import image_of
from tests.small_layers import layers_of_entries


def written(layers: list[list[Entry]], folder: Path) -> list[Path]:
    """An image a layer, with what it inherits."""
    images: list[Path] = []
    for number, layer in enumerate(layers):
        image = folder / str(number)
        image.write_bytes(image_of(layer, inherited_from(images, Outline(layer).implied())))
        images.append(image)
    return images


@settings(max_examples=200)
@given(st.lists(layers_of_entries(), min_size=1, max_size=4))
def test_what_a_stack_shows_is_the_merged_tree(layers: list[list[Entry]]) -> None:
    """For every path there is or might be: the directory's attributes, or nothing where it is none."""
    shown = {path: node.entry for path, node in Tree(layers).walk() if node.children is not None}
    asked = {b"nowhere", *shown, *(entry.name for layer in layers for entry in layer)}
    with tempfile.TemporaryDirectory() as folder:
        found = inherited_from(written(layers, Path(folder)), sorted(asked))
    assert {path: facts(entry) for path, entry in found.items()} == {path: facts(entry) for path, entry in shown.items()}


def facts(entry: Entry) -> tuple[object, ...]:
    """What a directory is, but for attributes about overlayfs, which the merged tree drops."""
    xattrs = tuple(item for item in entry.xattrs if not item[0].startswith(b"trusted.overlay."))
    return entry.type, entry.mode, entry.uid, entry.gid, entry.mtime_ns, xattrs


def test_a_layers_own_overlay_attributes_come_back_as_they_were(tmp_path: Path) -> None:
    """Unescaped, and without those that the writer put there."""
    xattrs = ((b"trusted.overlay.opaque", b"y"), (b"trusted.overlay.overlay.x", b""), (b"user.x", b"1"), (b"user.xyz", b"12345"))
    directory = Entry(b"d", "dir", mode=0o2711, uid=7, gid=2**31, mtime_ns=-3, xattrs=xattrs)
    images = written([[directory, Entry(b"d/.wh..wh..opq", "reg"), Entry(b"d/f", "reg")]], tmp_path)
    assert inherited_from(images, [b"d"]) == {b"d": directory}


def test_names_in_large_directories_are_found(tmp_path: Path) -> None:
    """Over many blocks, the first and last of each among them."""
    layer = [Entry(b"d/%d" % number, "dir", uid=number) for number in range(3000)]
    found = inherited_from(written([layer], tmp_path), [entry.name for entry in layer] + [b"d/", b"d/3000", b"d/-", b"d/x"])
    assert {path: entry.uid for path, entry in found.items()} == {entry.name: entry.uid for entry in layer}


@pytest.mark.parametrize("data", [b"", b"short", bytes(4096)])
def test_a_file_that_is_no_image_is_an_error(tmp_path: Path, data: bytes) -> None:
    """Nothing is guessed from it."""
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(StoreUnusable, match="damaged"):
        inherited_from([tmp_path / "image"], [b""])


def test_a_damaged_image_is_an_error_or_an_answer(tmp_path: Path) -> None:
    """Whatever its bytes say: no other exception, and no endless search."""
    [image] = written([[Entry(b"d/%d" % number, "dir", xattrs=((b"user.x", b"1"),)) for number in range(400)]], tmp_path)
    sound = image.read_bytes()
    for position in range(1024, 1400):
        image.unlink()
        image.write_bytes(sound[:position] + b"\xff" + sound[position + 1 :])
        with suppress(StoreUnusable):
            inherited_from([image], [b"d", b"d/7", b"d/399"])


def test_no_images_show_nothing() -> None:
    """The lowest layer inherits nothing."""
    assert inherited_from([], [b"", b"a"]) == {}
