"""Layers are merged in four places, each for what it needs; all rows of one table go through all four, and through umoci.

The converter and layers that are fetched whole put a tar on what the layers below show (layertar/tree.py). The result is a list of
entries a layer, which is merged in memory for a portable mount (vfs/tree.py), written as EROFS images that overlayfs merges
(erofs/outline.py), and merged once more for a recording (gate/record.py), which asks what paths an object is shown under.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from lazyfs.format.entry import Chunk, Entry
from lazyfs.format.xattr import shown_xattrs
from lazyfs.gate.record import paths_of
from lazyfs.layertar.content import read_content
from lazyfs.layertar.layer_index import index_layer
from lazyfs.layertar.plan import Planned, plan_layer
from lazyfs.layertar.tree import LowerTree, Node
from lazyfs.store.content import content_of
from lazyfs.vfs import tree as vfs
from tests.commands import umoci_unpack
from tests.integration.test_convert import add_image
from tests.layer_stacks import ROWS, Row, tars
from tests.metadata_images import stacked
from tests.tars import read
from tests.tree import Record, compare, walk

pytestmark = [pytest.mark.umoci, pytest.mark.erofs]


class Merged(NamedTuple):
    """All rows, merged by us: the tree while tars are put on it, and what each layer says then."""

    tree: LowerTree
    layers: Sequence[Sequence[Entry]]
    contents: Mapping[str, bytes]
    """The bytes of each object, by its name."""


@pytest.fixture(scope="module")
def merged() -> Merged:
    """The rows as the converter and the mount understand them."""
    tree = LowerTree()
    layers = []
    contents: dict[str, bytes] = {}
    for number, tar in enumerate(tars()):
        plan = plan_layer(index_layer(tree, read(tar), number, "layer"), landmark=False)
        layers.append([_cut(planned, tar, contents) for planned in plan])
    return Merged(tree, layers, contents)


def _cut(planned: Planned, tar: bytes, contents: dict[str, bytes]) -> Entry:
    entry = planned.entry
    if not entry.size:
        return entry
    data = read_content(planned, 0, entry.size, lambda at, size: tar[at : at + size])
    entry = msgspec.structs.replace(entry, chunks=(Chunk(0, entry.size, hashlib.sha256(data).digest(), 0, 0, 1),))
    contents[content_of(entry.chunks).name] = data
    return entry


@pytest.fixture(scope="module")
def unpacked(session_folder: Path) -> dict[bytes, Record]:
    """What umoci makes of all rows: once."""
    image = add_image(session_folder / "stacks", *tars())
    return walk(umoci_unpack(image, session_folder / "stacks-unpacked"))


@pytest.fixture(scope="module")
def overlay(merged: Merged, session_folder: Path) -> Iterator[dict[bytes, Record]]:
    """What overlayfs shows of the layers' EROFS images."""
    folder = session_folder / "stacks-native"
    objects = folder / "objects"
    objects.mkdir(parents=True)
    for name, data in merged.contents.items():
        (objects / name).write_bytes(data)
    with stacked(merged.layers, objects, folder) as at:
        yield walk(at)


def record_of(entry: Entry, nlink: int) -> Record:
    """What a program would see of an entry."""
    return Record(
        type=entry.type,
        mode=0o777 if entry.type == "symlink" else entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=len(entry.link) if entry.type == "symlink" else entry.size,
        mtime_ns=entry.mtime_ns,
        link=entry.link,
        nlink=0 if entry.type == "dir" else nlink,
        xattrs=tuple((key.decode(), value) for key, value in shown_xattrs(entry)),
        rdev=(entry.major, entry.minor),
        sha256="",
    )


def of_row(row: Row, records: Mapping[bytes, Record]) -> dict[bytes, Record]:
    """The row's part of a tree."""
    folder = row.name.encode() + b"/"
    return {path.removeprefix(folder): record for path, record in records.items() if path.startswith(folder)}


def without(records: Mapping[bytes, Record], *fields: str) -> dict[bytes, Record]:
    """The records without what somebody cannot know."""
    nothing = Record("", 0, 0, 0, 0, 0, b"", 0, (), (0, 0), "")
    return {path: record._replace(**{field: getattr(nothing, field) for field in fields}) for path, record in records.items()}


def expect_same(row: Row, unpacked: Mapping[bytes, Record], found: Mapping[bytes, Record], *ignored: str) -> None:
    """The row is shown as umoci shows it, but for what the table says, for times of directories that no layer names, and for `untold`."""
    left = {path: record for path, record in of_row(row, unpacked).items() if path not in row.differs}
    untimed = {path for path, record in left.items() if record.type == "dir"}
    assert left
    assert [str(difference) for difference in compare(without(left, *ignored), without(found, *ignored), untimed=untimed)] == []


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    """Each of the table."""
    found: Row = request.param
    return found


def test_a_tar_is_put_on_the_layers_below(row: Row, merged: Merged, unpacked: dict[bytes, Record]) -> None:
    """layertar/tree.py. It counts no links and reads no content."""
    found: dict[bytes, Record] = {}

    def look(path: bytes, node: Node) -> None:
        for name, child in (node.children or {}).items():
            inside = path + b"/" + name if path else name
            found[inside] = record_of(child.entry, 1)
            look(inside, child)

    look(b"", merged.tree.root)
    expect_same(row, unpacked, of_row(row, found), "nlink", "sha256")


def test_a_described_layer_is_put_on_the_layers_below(row: Row, merged: Merged) -> None:
    """layertar/tree.py again: a layer that is described already shows what its tar showed."""
    described = LowerTree()
    for number, entries in enumerate(merged.layers):
        described.put(entries, number)

    def shown(tree: LowerTree) -> dict[bytes, Entry]:
        found: dict[bytes, Entry] = {}
        pending = [(row.name.encode(), node) for node in [tree.resolve(row.name.encode()).node] if node is not None]
        while pending:
            path, node = pending.pop()
            found[path] = msgspec.structs.replace(node.entry, name=b"", chunks=())
            pending += [(path + b"/" + name, child) for name, child in (node.children or {}).items()]
        return found

    assert shown(described) == shown(merged.tree)


def test_a_portable_mount_merges_them(row: Row, merged: Merged, unpacked: dict[bytes, Record]) -> None:
    """vfs/tree.py."""
    names = {hashlib.sha256(data).hexdigest() for data in merged.contents.values()}
    found = {path: _with_content(record_of(node.entry, node.nlink), node.entry) for path, node in vfs.Tree(merged.layers).walk()}
    assert {record.sha256 for record in found.values()} - names <= {"", hashlib.sha256(b"").hexdigest()}
    expect_same(row, unpacked, of_row(row, found))


def _with_content(record: Record, entry: Entry) -> Record:
    if entry.type != "reg":
        return record
    return record._replace(sha256=entry.chunks[0].digest.hex() if entry.chunks else hashlib.sha256(b"").hexdigest())


def test_overlayfs_merges_their_images(row: Row, overlay: dict[bytes, Record], unpacked: dict[bytes, Record]) -> None:
    """erofs/outline.py. A file whose other name is hidden keeps its count of links, as overlayfs has it after a full pull."""
    expect_same(row, unpacked, of_row(row, overlay), "nlink")


def test_a_recording_names_what_is_shown(row: Row, merged: Merged, unpacked: dict[bytes, Record]) -> None:
    """gate/record.py: each object under all paths that show it, and under no other."""
    left = {path: record for path, record in of_row(row, unpacked).items() if path not in row.differs}
    wanted = {path: record.sha256 for path, record in left.items() if record.type == "reg" and record.size}
    found: dict[bytes, str] = {}
    for name, data in merged.contents.items():
        for _, path in paths_of([name], merged.layers):
            assert path not in found, path
            found[path] = hashlib.sha256(data).hexdigest()
    folder = row.name.encode() + b"/"
    assert {path.removeprefix(folder): digest for path, digest in found.items() if path.startswith(folder)} == wanted
