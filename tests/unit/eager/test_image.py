"""Images whose layers are not lazy: what becomes of them in the store, and what is asked of whom."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import zstandard
from hypothesis import given, settings

from lazyfs.eager import blob as whole_blob
from lazyfs.eager.image import load_image_layers
from lazyfs.errors import DigestMismatch, InvalidInput, InvalidTar, NotLazy, RangeIgnored, StoreFull
from lazyfs.format import bounds
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.entry import OWN_NAMES, Entry
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_LAYER_TAR, OCI_LAYER_ZSTD
from lazyfs.format.toc import parse_toc
from lazyfs.image.image import resolve_image
from lazyfs.image.layer import Layer
from lazyfs.store import index as store_index
from lazyfs.store.content import content_of
from lazyfs.store.store import Store
from lazyfs.vfs.tree import Tree
from tests.conftest import LogWatch
from tests.unit.converter.making import LAYERS, Item, tar_of
from tests.unit.converter.places import MemoryRepository, converted, request
from tests.unit.eager.loading import APP, BASE, LARGE, LINUX, Reports, asks_for_layers, content, here, kept, load
from tests.unit.eager.model import Model, Refused


async def test_ordinary_image_is_fetched_whole(store: Store) -> None:
    """Its files are in the store, its names at their real paths, and a note says what a conversion would have saved."""
    place, reports = MemoryRepository(), Reports()
    place.add_image(tar_of(BASE), tar_of(APP))
    base, app = await load(place, store, reports)
    assert here(store, (base, app))
    assert {entry.name: content(store, entry) for entry in base.entries if entry.size} == {
        b"usr/lib/large": LARGE,
        b"old": b"old",
    }
    assert [(entry.name, entry.type, entry.mode, entry.uid) for entry in app.entries] == [
        (b".wh.old", "reg", 0o755, 0),
        (b"usr", "dir", 0o711, 0),
        (b"usr/lib", "dir", 0o700, 33),
        (b"usr/lib/app", "reg", 0o4755, 0),
        (b"link", "hardlink", 0o4755, 0),
    ]
    tree = Tree([base.entries, app.entries])
    node = tree.find(b"link")
    assert node is not None and node is tree.find(b"usr/lib/app") and node.nlink == 2
    assert [layer.reason for layer in (base, app)] == [
        "has no annotation containerd.io/snapshot/stargz/toc.digest: its manifest names no TOC digest"
    ] * 2
    first, second = reports.notes
    assert "layer 1 of 2 (sha256:" in first and f"{base.descriptor.size / 1e6:.1f} MB are fetched whole" in first
    assert f"`lazyfs convert memory:place@{place.documents['v1'].digest} DST`" in second
    assert reports.bars == {
        "layer 1 of 2: fetching": (base.descriptor.size, base.descriptor.size),
        "layer 1 of 2: unpacking": (len(LARGE) + 3, len(LARGE) + 3),
        "layer 2 of 2: fetching": (app.descriptor.size, app.descriptor.size),
        "layer 2 of 2: unpacking": (5, 5),
    }


async def test_document_is_a_toc(store: Store) -> None:
    """What the store keeps reads as the layer's entries: the digest and the offset are enough."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    (layer,) = await load(place, store)
    data = store.document(layer.toc_digest)
    assert data is not None
    assert parse_toc(data, layer.toc_offset, "x") == layer.entries
    assert layer.toc_offset == len(LARGE) + 3
    assert layer.prefetch_end == 0


async def test_files_are_the_objects_of_a_converted_image(store: Store) -> None:
    """At the converter's defaults the same file has the same name, however large."""
    place, lazy = MemoryRepository(), MemoryRepository()
    place.add_image(tar_of(BASE), tar_of(APP))
    whole = await load(place, store)
    await converted(place, lazy, request(chunk_size=4 << 20))
    layers = await load(lazy, store)
    assert all(layer.whole is None for layer in layers)

    def names(layer: Layer) -> dict[bytes, str]:
        return {
            entry.name: content_of(entry.chunks).name for entry in layer.entries if entry.chunks and entry.name not in OWN_NAMES
        }

    assert list(map(names, whole)) == list(map(names, layers))
    assert content_of(next(entry for entry in whole[0].entries if entry.name == b"usr/lib/large").chunks).name in kept(store)


async def test_what_is_here_is_not_fetched_again(store: Store) -> None:
    """With a digest not even the source is needed; and there are no notes."""
    place, reports = MemoryRepository(), Reports()
    place.add_image(tar_of(BASE), tar_of(APP))
    first = await load(place, store)
    assert len(asks_for_layers(place)) >= 2
    assert await load(place, store, reports) == first
    assert not place.done and not reports


async def test_layer_on_another_base_is_another_layer(store: Store) -> None:
    """The same blob, whose names lead elsewhere: it is fetched and described again."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE), tar_of(APP))
    _, app = await load(place, store)
    place.add_image(tar_of([(Entry(b"lib", "dir"), b"")]), tar_of(APP))
    _, other = await load(place, store)
    assert app.digest == other.digest
    assert b"usr/lib/app" in {entry.name for entry in app.entries}
    assert b"lib/app" in {entry.name for entry in other.entries}


async def test_ordinary_layer_over_a_lazy_one(store: Store) -> None:
    """Names lead through the entries of the lazy layer's TOC; that layer stays lazy."""
    place, lazy = MemoryRepository(), MemoryRepository()
    place.add_image(tar_of(BASE))
    await converted(place, lazy, request(chunk_size=4 << 20))
    (described,) = lazy.body()["layers"]
    (diff_id,) = lazy.config()["rootfs"]["diff_ids"]
    upper = tar_of(APP)
    lazy.add_manifest([described, lazy.add_blob(gzip.compress(upper), OCI_LAYER_GZIP)], [diff_id, digest_of(upper)])
    reports = Reports()
    base, app = await load(lazy, store, reports)
    assert base.whole is None and not base.reason and app.whole is not None
    assert [name for name in (entry.name for entry in app.entries) if name.endswith(b"app")] == [b"usr/lib/app"]
    assert len(reports.notes) == 1 and "layer 2 of 2" in reports.notes[0]
    assert not here(store, (base,)) and here(store, (app,))


@pytest.mark.parametrize(
    ("claim", "word"), [(digest_of(b"else"), "another TOC than its manifest names"), ("yes", "not a sha256 digest")]
)
async def test_a_toc_that_the_manifest_does_not_name_is_no_toc(store: Store, claim: str, word: str, expect_log: LogWatch) -> None:
    """The layer is what its blob's digest and its diff ID say, as for runtimes that know of no TOC. What makes it lazy is not believed."""
    place, lazy = MemoryRepository(), MemoryRepository()
    place.add_image(tar_of(BASE))
    await converted(place, lazy, request(chunk_size=4 << 20))
    (described,) = lazy.body()["layers"]
    described["annotations"][TOC_DIGEST] = claim
    lazy.add_manifest([described], lazy.config()["rootfs"]["diff_ids"])
    right = lazy.blobs[described["digest"]]
    lazy.blobs[described["digest"]] = right[:5] + bytes(5) + right[10:]
    expect_log("hashes to.*fetching it once more")
    with pytest.raises(DigestMismatch, match="hashes to"):
        await load(lazy, store)
    lazy.blobs[described["digest"]] = right
    reports = Reports()
    (layer,) = await load(lazy, store, reports)
    assert layer.whole is not None and word in layer.reason and word in reports.notes[0]
    assert here(store, (layer,))
    with pytest.raises(InvalidInput):
        await load(lazy, store, lazy_only=True)


async def test_lazy_only_refuses(store: Store) -> None:
    """Also what was fetched whole before: the flag is about the image."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE), tar_of(APP))
    for _ in range(2):
        with pytest.raises(NotLazy, match=r"names no TOC digest \(layer 1 of 2\).*lazyfs convert"):
            await load(place, store, lazy_only=True)
        assert not place.done
        await load(place, store)


@pytest.mark.parametrize("kind", [OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_LAYER_TAR])
async def test_every_kind_of_layer(kind: str, store: Store) -> None:
    """gzip, zstd, and none at all."""
    place = MemoryRepository()
    tar = tar_of(BASE)
    blob = {OCI_LAYER_GZIP: gzip.compress, OCI_LAYER_ZSTD: zstandard.compress, OCI_LAYER_TAR: bytes}[kind](tar)
    place.add_manifest([place.add_blob(blob, kind)], [digest_of(tar)])
    (layer,) = await load(place, store)
    assert here(store, (layer,)) and layer.whole is not None
    assert content(store, layer.entries[2]) == LARGE


async def test_two_who_want_the_same_layer_fetch_it_once(store: Store, tmp_path: Path) -> None:
    """Two tasks, over one open store and over two: the others wait, and find it here."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE), tar_of(APP))
    image = await resolve_image(place, "v1", LINUX, store)
    place.done.clear()
    reports = Reports()
    found: list[tuple[Layer, ...]] = []

    async def one(store: Store) -> None:
        found.append(await load_image_layers(place, store, image, lazy_only=False, progress=reports))

    with Store.open(tmp_path / "store") as other:
        async with trio.open_nursery() as nursery:
            for each in (store, store, other):
                nursery.start_soon(one, each)
    assert found[0] == found[1] == found[2]
    assert sum("is not lazy" in note for note in reports.notes) == 2
    assert any("waiting for layer" in note for note in reports.notes)


async def test_layers_in_another_order_wait_for_each_other_without_end(store: Store) -> None:
    """Two images, one the other upside down, at the same time: there is no deadlock."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE), tar_of(APP), tag="a")
    place.add_image(tar_of(APP), tar_of(BASE), tag="b")
    images = [await resolve_image(place, tag, LINUX, store) for tag in "ab"]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for image in images * 2:
                nursery.start_soon(partial(load_image_layers, place, store, image, lazy_only=False, progress=Reports()))


async def test_document_that_was_damaged_is_made_again(store: Store, expect_log: Any) -> None:
    """The layer is fetched again, whatever the note says."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    (layer,) = await load(place, store)
    (store.directory.path / "documents" / layer.toc_digest[7:]).write_bytes(b"{}")
    expect_log("dropped a damaged document")
    assert await load(place, store) == (layer,)
    assert asks_for_layers(place)


async def test_server_that_sends_whole_blobs_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one range it is read as one stream."""
    monkeypatch.setattr(whole_blob, "RANGE", 1 << 20)
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    right = place.open_range

    def refuse(digest: Digest, size: int, start: int, end: int, **more: Any) -> Any:
        if start:
            place.done.append(f"refused {start}")
            raise RangeIgnored("the whole blob")
        return right(digest, size, start, end, **more)

    monkeypatch.setattr(place, "open_range", refuse)
    (layer,) = await load(place, store)
    assert here(store, (layer,))
    assert len(asks_for_layers(place)) == 2


async def test_registry_without_ranges_gives_its_lazy_layers_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verified as any whole layer, with a note that says why and proposes no conversion; --lazy-only refuses. Once here, it stays."""
    place, target, reports = MemoryRepository(), MemoryRepository(), Reports()
    place.add_image(tar_of(BASE), tar_of(APP))
    await converted(place, target, request(chunk_size=4 << 20))
    right = target.open_range

    def refuse(digest: Digest, size: int, start: int, end: int, **more: Any) -> Any:
        if start:
            raise RangeIgnored("blob B: registry.test answers a request for its end with the whole blob")
        return right(digest, size, start, end, **more)

    monkeypatch.setattr(target, "open_range", refuse)
    with pytest.raises(NotLazy, match=r"cannot be mounted lazily: blob B.*whole blob \(layer 1 of 2\).*serves byte ranges"):
        await load(target, store, lazy_only=True)
    large, small = await load(target, store, reports)
    assert here(store, (large,)) and LARGE in [content(store, entry) for entry in large.entries]
    assert large.reason.endswith("in ranges: blob B: registry.test answers a request for its end with the whole blob")
    assert not small.reason, "its end is all of it"
    assert len(reports.notes) == 1 and "lazyfs convert" not in reports.notes[0]
    target.done.clear()
    assert await load(target, store) == (large, small) and not asks_for_layers(target)


async def test_cancelled_it_leaves_nothing_under_way(store: Store) -> None:
    """Temporary space is given back, and the next one has its turn."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    image = await resolve_image(place, "v1", LINUX, store)
    with trio.CancelScope() as scope:

        async def cancel(report: dict[str, Any]) -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        await load_image_layers(place, store, image, lazy_only=False, progress=cancel)
    assert scope.cancelled_caught
    assert here(store, await load(place, store))


@given(LAYERS)
@settings(max_examples=60)
def test_whole_layers_show_what_is_unpacked(layers: list[list[Item]]) -> None:
    """Against the model of umoci: the same names, types, owners, times, links and contents, layer upon layer."""
    place, model = MemoryRepository(), Model()
    place.add_image(*map(tar_of, layers))
    refused = False
    try:
        for layer in layers:
            model.unpack(layer)
    except Refused:
        refused = True
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store") as store:
        try:
            found = trio.run(load, place, store)
        except InvalidTar:
            return
        assert not refused
        mine = Model()
        for layer in found:
            mine.unpack((msgspec.structs.replace(entry, chunks=()), content(store, entry)) for entry in layer.entries)
        assert mine.tree() == model.tree()
        for layer in found:
            for entry in layer.entries:
                assert all(hashlib.sha256(content(store, entry)).digest() == chunk.digest for chunk in entry.chunks)


async def test_another_process_that_finds_the_note_finds_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a layer's files are committed before the note that leads to them, not when the next commit is due."""
    monkeypatch.setattr(store_index, "_COMMIT_DELAY", 3600)
    place = MemoryRepository()
    place.add_image(tar_of([(Entry(b"file", "reg", size=5), b"hello")]))
    with Store.open(tmp_path / "store") as store, Store.open(tmp_path / "store") as other:
        await load(place, store)
        layers = await load(place, other)
        assert asks_for_layers(place) == []
        assert here(other, layers)


@pytest.mark.parametrize("is_hopeless", [False, True])
async def test_blob_makes_room_for_its_files(is_hopeless: bool, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that holds the tar and its files, and not the blob as well, holds the layer. Where it is too small for that, no blob stays."""
    keep = Store.keep

    def under_way() -> list[Path]:
        return [path for path in Path(store.directory.partial).glob("blob-*") if path.stat().st_size or is_hopeless]

    def refuse(self: Store, *chunk: Any) -> None:
        if under_way() or is_hopeless:
            raise StoreFull("no room")
        keep(self, *chunk)

    monkeypatch.setattr(Store, "keep", refuse)
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    if is_hopeless:
        with pytest.raises(StoreFull):
            await load(place, store)
    else:
        assert here(store, await load(place, store))
    assert not under_way()


async def test_layers_that_are_too_much_together_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone is small enough; the first is in the store by then, and no file of the image is lost or half-written."""
    monkeypatch.setattr(bounds, "DESCRIPTION", 1 << 20)
    place = MemoryRepository()
    value = bytes(10_000)
    folders: list[list[Item]] = [
        [(Entry(b"%d-%d" % (layer, number), "dir", xattrs=((b"user.x", value),)), b"") for number in range(80)]
        for layer in range(2)
    ]
    place.add_image(*map(tar_of, folders))
    with pytest.raises(InvalidTar, match="in addition to the image's other layers"):
        await load(place, store)
