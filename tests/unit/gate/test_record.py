"""A record: what was touched, in order, under the paths that the image shows, in ctr-remote's format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converter.prioritize import read_list
from lazyfs.errors import LocalError
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import PREFETCH_LANDMARK, Chunk, Entry
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, ImageConfig, Manifest
from lazyfs.gate.record import Recorder, paths_of
from lazyfs.image.image import Image
from lazyfs.store.content import content_of
from lazyfs.vfs.tree import Tree

DIGEST = digest_of(b"manifest")


def chunks(*texts: bytes) -> tuple[Chunk, ...]:
    found, offset = [], 0
    for text in texts:
        found.append(Chunk(offset, len(text), bytes.fromhex(digest_of(text).removeprefix("sha256:")), 0, 0, 1))
        offset += len(text)
    return tuple(found)


def file(name: bytes, *texts: bytes) -> Entry:
    return Entry(name, "reg", size=sum(map(len, texts)), chunks=chunks(*texts))


def name_of(*texts: bytes) -> str:
    return content_of(chunks(*texts)).name


def recorder(*layers: list[Entry]) -> Recorder:
    descriptor = Descriptor(OCI_LAYER_GZIP, DIGEST, 1, {}, None, {})
    config = ImageConfig((), "amd64", "linux", "")
    image = Image("oci:x", DIGEST, Manifest(OCI_MANIFEST, descriptor, (), {}, {}, b""), config)
    return Recorder(image, lambda: layers)


def written(recorded: Recorder, path: Path) -> list[dict[str, Any]]:
    recorded.write(path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_order_of_first_touch(tmp_path: Path) -> None:
    """An object counts from its first touch. Layers are numbered from the lowest, and a large file is an object too."""
    recorded = recorder([file(b"lib/a", b"a"), file(b"lib/b", b"b")], [file(b"app", b"one", b"two"), Entry(b"empty", "reg")])
    for name in (name_of(b"b"), name_of(b"one", b"two"), name_of(b"b"), name_of(b"a"), name_of(b"one"), name_of(b"elsewhere")):
        recorded.touch(name)
    assert written(recorded, tmp_path / "record") == [
        {"path": "lib/b", "manifestDigest": DIGEST, "layerIndex": 0},
        {"path": "app", "manifestDigest": DIGEST, "layerIndex": 1},
        {"path": "lib/a", "manifestDigest": DIGEST, "layerIndex": 0},
    ]
    assert read_list(tmp_path / "record") == (b"lib/b", b"app", b"lib/a")


def test_an_object_has_all_its_paths(tmp_path: Path) -> None:
    """Equal files and hard links are one object. lazyfs's own landmark is not listed."""
    recorded = recorder(
        [file(b"x", b"same"), Entry(b"y", "hardlink", link=b"x"), file(PREFETCH_LANDMARK, b"same")], [file(b"z", b"same")]
    )
    recorded.touch(name_of(b"same"))
    assert {line["path"] for line in written(recorded, tmp_path / "record")} == {"x", "y", "z"}


def test_nothing_touched(tmp_path: Path) -> None:
    """A container that read nothing has an empty record."""
    assert written(recorder([file(b"x", b"x")]), tmp_path / "record") == []


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """JSON contains text: other bytes become what Go makes of them, and the line stays one line."""
    recorded = recorder([file(b'caf\xe9\n"', b"x")])
    recorded.touch(name_of(b"x"))
    assert [line["path"] for line in written(recorded, tmp_path / "record")] == ['caf\ufffd\n"']


def test_written_all_at_once(tmp_path: Path) -> None:
    """An old record is replaced as a whole, and kept on failure. Nothing else is left in the directory."""
    path = tmp_path / "record"
    path.write_text("of yesterday")
    path.chmod(0o600)
    recorded = recorder([file(b"x", b"x")])
    recorded.touch(name_of(b"x"))
    recorded.write(path)
    assert os.listdir(tmp_path) == ["record"] and path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "folder").mkdir()
    with pytest.raises(LocalError, match="cannot write the record"):
        recorded.write(tmp_path / "folder")
    with pytest.raises(LocalError, match="cannot write the record"):
        recorded.write(tmp_path / "gone/record")
    assert sorted(os.listdir(tmp_path)) == ["folder", "record"]


PARTS = st.sampled_from([b"a", b"b", b".wh.a", b".wh.b", b".wh..wh..opq"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
TYPES = st.sampled_from(["dir", "reg", "symlink"])


def sound(paths: dict[bytes, Any]) -> list[Entry]:
    """A layer of these, as format/toc.py accepts it: nothing is inside a non-directory, and whiteouts are empty files."""
    entries = []
    for path in sorted(paths):
        parts = path.split(b"/")
        folders = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
        if any(b".wh." in folder or paths.get(folder, "dir") != "dir" for folder in folders):
            continue
        marker = path.rpartition(b"/")[2].startswith(b".wh.")
        kind = "reg" if marker else paths[path]
        entries.append(
            file(path, b"bytes") if kind == "reg" and not marker else Entry(path, kind, link=b"b" if kind == "symlink" else b"")
        )
    return entries


@example([{b"a": "reg"}, {b"a/.wh.a": "dir"}])
@example([{b"a": "reg"}, {b"a/b": "reg"}])
@given(st.lists(st.dictionaries(PATHS, TYPES, max_size=8), min_size=1, max_size=4))
def test_paths_are_those_that_the_image_shows(choices: list[dict[bytes, Any]]) -> None:
    """Whatever the layers hide of each other: the paths of an object are the files of the merged tree that consist of it."""
    layers = [sound(paths) for paths in choices]
    shown = {path for path, node in Tree(layers).walk() if node.entry.type == "reg" and node.entry.chunks}
    assert sorted(path for _, path in paths_of([name_of(b"bytes")], layers)) == sorted(shown)
