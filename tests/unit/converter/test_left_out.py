"""What of a layer is not in the converted one, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converter.layer import Style, write_layer
from lazyfs.cli.main import main
from lazyfs.format.entry import Entry
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.manifest import OCI_LAYER_GZIP
from lazyfs.format.tar import read_tar
from lazyfs.layertar.cut import every
from lazyfs.layertar.own import own_files
from lazyfs.layertar.plan import Planned
from tests.bad.oci import Oci
from tests.unit.converter.making import THREADS, Item, convert_tar, items_of, tar_of
from tests.unit.converter.places import MemoryRepository, converted


def reg(name: bytes, data: bytes = b"") -> Item:
    return Entry(name, "reg", size=len(data)), data


def own_names(*items: Item) -> tuple[bytes, ...]:
    tar = tar_of(items)

    def read_at(offset: int, size: int) -> bytes:
        return tar[offset : offset + size]

    return own_files(list(read_tar(read_at, len(tar), len(tar), "layer")), read_at)


def test_the_formats_own_files_are_none_of_the_image() -> None:
    """Of a layer that we have written, or a peer with its tabs."""
    tar = convert_tar(tar_of([reg(b"a", b"1")])).tar
    assert own_names(*items_of(tar)) == ()
    assert (
        own_names(reg(b".prefetch.landmark", b"\x0f"), reg(b"stargz.index.json", b'{\n\t"version": 1,\n\t"entries": [\n')) == ()
    )


@pytest.mark.parametrize(
    "item",
    [
        reg(b"stargz.index.json", b"{}"),
        reg(b"stargz.index.json"),
        reg(b".prefetch.landmark"),
        reg(b".no.prefetch.landmark", b"text"),
        (Entry(b".no.prefetch.landmark", "dir"), b""),
        reg(b"stargz.index.json/below", b'{"version": 1, "entries": ['),
    ],
)
def test_an_images_own_files_are_found(item: Item) -> None:
    """By what they hold: the last one of each name counts."""
    assert own_names(reg(b"a"), reg(b".prefetch.landmark", b"\x0f"), item) == (item[0].name,)


async def test_a_conversion_says_what_it_leaves_out() -> None:
    """By layer, in words; a layer of ours is converted again in silence."""
    source, target = MemoryRepository(), MemoryRepository()
    source.add_image(
        tar_of([reg(b"a", b"1"), reg(b"stargz.index.json", b"{}")]),
        tar_of([reg(b".wh.b/c", b"2"), (Entry(b"l", "symlink", link=b".wh.x"), b""), reg(b"l/y")]),
        tar_of([reg(b".wh..wh.aufs"), reg(b"d", b"3")]),
    )
    report = await converted(source, target)
    (image,) = report.images
    assert image.left_out == (
        f"layer {image.layers[0].source_digest}: left out what the image has under names that belong to the format: '/stargz.index.json'",
        f"layer {image.layers[1].source_digest}: left out one entry below names that begin with .wh., which a full pull shows: '.wh.b/c'",
        f"layer {image.layers[1].source_digest}: left out one entry below names that begin with .wh., which a full pull shows: 'l/y'",
    )
    (again,) = (await converted(target, MemoryRepository())).images
    assert again.left_out == () and all(layer.kept for layer in again.layers)


def test_a_conversion_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, so that what it prints for programs stays JSON."""
    oci = Oci(tmp_path / "source")
    oci.image(oci.plain(tar_of([reg(b"a", b"1"), reg(b".prefetch.landmark", b"mine")])))
    assert main(["convert", f"oci:{oci.path}:v1", f"oci:{tmp_path}/out:v1", "--json"]) == 0
    said = capsys.readouterr()
    (remark,) = json.loads(said.out)["images"][0]["left_out"]
    assert said.err == f"lazyfs: warning: {remark}\n" and "'/.prefetch.landmark'" in remark


async def test_a_lazy_layer_with_metadata_of_aufs_is_not_kept() -> None:
    """Another converter took it over; what we write does not hold it."""
    landmark = Planned(Entry(b".no.prefetch.landmark", "reg", 0, size=1), content=b"\x0f")
    for name, kept in ((b".wh.a", True), (b".wh..wh.aufs", False)):
        source = MemoryRepository()
        plan = [landmark, Planned(Entry(b"", "dir")), Planned(Entry(name, "reg"))]
        file, layer = write_layer(plan, lambda _at, _size: b"", Style(every(4096), 6), THREADS, 1, lambda _count: None)
        with file:
            file.seek(0)
            described = source.add_blob(file.read(), OCI_LAYER_GZIP, annotations={TOC_DIGEST: layer.toc_digest})
        source.add_manifest([described], [layer.diff_id])
        report = await converted(source, MemoryRepository())
        assert report.images[0].layers[0].kept == kept
