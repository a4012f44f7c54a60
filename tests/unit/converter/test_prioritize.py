"""Lists of what comes first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converter.prioritize import find, read_list
from lazyfs.errors import UsageError
from lazyfs.format.entry import Entry
from lazyfs.layertar.tree import LowerTree
from tests.unit.converter.making import Item, convert_tar, tar_of

LAYERS: list[list[Item]] = [
    [
        (Entry(b"usr", "dir"), b""),
        (Entry(b"usr/lib", "dir"), b""),
        (Entry(b"usr/lib/a", "reg", size=1), b"a"),
        (Entry(b"usr/lib/b", "reg", size=1), b"b"),
        (Entry(b"lib", "symlink", link=b"usr/lib"), b""),
        (Entry(b"gone", "reg", size=1), b"g"),
    ],
    [
        (Entry(b"usr/lib/b", "reg", size=1), b"B"),
        (Entry(b"usr/lib/c", "symlink", link=b"/lib/a"), b""),
        (Entry(b".wh.gone", "reg"), b""),
        (Entry(b"loop", "symlink", link=b"loop"), b""),
    ],
]


def tree() -> LowerTree:
    made = LowerTree()
    for number, layer in enumerate(LAYERS):
        convert_tar(tar_of(layer), made, number)
    return made


@pytest.mark.parametrize(
    ("path", "layers"),
    [
        (b"/usr/lib/a", {0: [b"usr/lib/a"]}),
        (b"usr/lib/b", {1: [b"usr/lib/b"]}),
        (b"lib/b", {0: [b"lib"], 1: [b"usr/lib/b"]}),
        (b"lib/c", {0: [b"lib", b"lib", b"usr/lib/a"], 1: [b"usr/lib/c"]}),
        (b"usr/lib", {0: [b"usr/lib"]}),
        (b"/", {}),
    ],
)
def test_a_path_goes_to_the_topmost_layer_that_shows_it(path: bytes, layers: dict[int, list[bytes]]) -> None:
    """With the links on the way, each in its own layer."""
    assert find([path], tree()) == (layers, ())


def test_paths_that_are_nowhere_are_reported() -> None:
    """Missing, whited out, behind a file, in a circle."""
    paths = [b"missing", b"gone", b"usr/lib/a/x", b"loop", b"lib/a"]
    layers, missing = find(paths, tree())
    assert missing == (b"missing", b"gone", b"usr/lib/a/x", b"loop")
    assert layers == {0: [b"lib", b"usr/lib/a"]}


def test_lists_are_read(tmp_path: Path) -> None:
    """Plain paths and ctr-remote's records, blank lines and repetitions passed over, bytes as they are."""
    path = tmp_path / "list"
    record = json.dumps({"path": "usr/bin/é", "manifestDigest": "sha256:0", "layerIndex": 2}).encode()
    path.write_bytes(b"/bin/sh\n\n  \n" + record + b"\nlib/\xe9\r\n/bin/sh\n{not json\n{}\n")
    assert read_list(path) == (b"/bin/sh", "usr/bin/é".encode(), b"lib/\xe9", b"{not json", b"{}")


def test_a_list_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not there, or it is not a list."""
    with pytest.raises(UsageError, match="cannot read the list of paths"):
        read_list(tmp_path / "missing")
    monkeypatch.setattr("converter.prioritize._MAX_LIST", 3)
    (tmp_path / "long").write_bytes(b"12345")
    with pytest.raises(UsageError, match="more than 3 bytes"):
        read_list(tmp_path / "long")
