"""Whole conversions, from one place in memory to another."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
import zstandard

from converter.rewrite import SOURCE_DIGEST
from lazyfs.errors import DigestMismatch, InvalidInput, InvalidManifest, InvalidTar, LazyfsError, Unreachable
from lazyfs.format import bounds
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.estargz import TOC_DIGEST
from lazyfs.format.footer import FOOTER_SIZE, parse_footer
from lazyfs.format.manifest import (
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_LAYER_GZIP,
    OCI_LAYER_TAR,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
)
from lazyfs.format.platform import Platform
from tests.tars import END
from tests.unit.converter.making import Item, items_of, tar_of
from tests.unit.converter.places import AMD64, ARM64, Json, MemoryRepository, converted, request
from tests.unit.converter.refusing import APP, BASE, TAR, leaf, refused, with_layer

LINUX = Platform("linux", "amd64")
LINK_TO_NOTHING = tar_of([(Entry(b"l", "hardlink", link=b"nothing"), b"")])


def tocs(place: MemoryRepository, reference: str = "v1") -> list[Json]:
    """The TOCs of an image's layers, each verified against the manifest's word."""
    found = []
    for described, blob in zip(place.body(reference)["layers"], place.layers(reference), strict=True):
        toc = items_of(gzip.decompress(blob))[-1][1]
        assert described["annotations"][TOC_DIGEST] == digest_of(toc)
        assert parse_footer(blob[-FOOTER_SIZE:], len(blob), "layer") > 0
        found.append(json.loads(toc))
    return found


async def test_an_image_becomes_estargz() -> None:
    """Manifest, config, layers and TOCs fit each other, and the report says what they are."""
    source, sink = MemoryRepository(), MemoryRepository()
    old = source.add_image(tar_of(BASE), tar_of(APP), config={"history": [{"created_by": "x"}], "config": {"Cmd": ["sh"]}})
    report = await converted(source, sink)
    manifest, config = sink.body(), sink.config()
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["annotations"] == {SOURCE_DIGEST: old["digest"]}
    assert config["rootfs"]["diff_ids"] == [digest_of(gzip.decompress(blob)) for blob in sink.layers()]
    assert (config["history"], config["config"]) == ([{"created_by": "x"}], {"Cmd": ["sh"]})
    assert [[entry["name"] for entry in toc["entries"] if entry["type"] != "chunk"] for toc in tocs(sink)] == [
        [".no.prefetch.landmark", "bin/", "bin/sh", "etc/", "etc/conf", "sh"],
        [".no.prefetch.landmark", "app", "etc/", "etc/.wh.conf"],
    ]
    implied = tocs(sink)[1]["entries"][2]
    assert (implied["mode"], implied["uid"]) == (0o700, 33)
    assert report.digest == sink.documents["v1"].digest
    assert report.source_digest == old["digest"]
    (image,) = report.images
    assert image.platform == "linux/amd64"
    assert [(layer.entries, layer.chunks, layer.kept) for layer in image.layers] == [(6, 5, False), (4, 2, False)]
    assert [layer.size for layer in image.layers] == [len(blob) for blob in sink.layers()]
    assert (report.lost, image.not_found) == ((), ())


async def test_the_tag_is_written_last() -> None:
    """After every blob, the config among them."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP))
    await converted(source, sink)
    assert [line.split()[0] for line in sink.done] == ["blob", "blob", "blob", "document"]
    assert sink.done[-1] == "document v1"


@pytest.mark.parametrize("media_type", [OCI_LAYER_GZIP, DOCKER_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_LAYER_TAR])
async def test_the_compression_of_the_source_does_not_show(media_type: str) -> None:
    """The same tar gives the same blob, from gzip, zstd or nothing, OCI or Docker."""
    tar = tar_of(BASE)
    gold, sink, source = MemoryRepository(), MemoryRepository(), MemoryRepository()
    source.add_image(tar)
    await converted(source, gold)
    blob = zstandard.compress(tar) if media_type == OCI_LAYER_ZSTD else tar if media_type == OCI_LAYER_TAR else gzip.compress(tar)
    source.add_manifest([source.add_blob(blob, media_type)], [digest_of(tar)])
    await converted(source, sink)
    assert sink.layers() == gold.layers()
    assert sink.body()["layers"][0]["mediaType"] == OCI_LAYER_GZIP


async def test_converting_twice_is_converting_once() -> None:
    """Layers, config and manifest stay, down to the digest; blobs are taken over where the sink can."""
    source, once, twice = MemoryRepository(), MemoryRepository(), MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP), END)
    first = await converted(source, once)
    twice.mounts_from = once
    second = await converted(once, twice)
    assert second.digest == first.digest
    assert [layer.kept for layer in second.images[0].layers] == [True] * 3
    assert [(layer.entries, layer.chunks) for layer in second.images[0].layers] == [
        (layer.entries, layer.chunks) for layer in first.images[0].layers
    ]
    assert once.body() == twice.body()
    assert sorted(line.split()[0] for line in twice.done) == ["blob", "document", "mount", "mount", "mount"]


@pytest.mark.parametrize(
    ("again", "kept"),
    [
        (request(), [True, True]),
        (request(workers=1), [True, True]),
        (request(keep=False), [False, False]),
        (request(chunk_size=8192), [False, True]),
        (request(prioritized=[b"app"]), [True, False]),
    ],
)
async def test_a_layer_stays_if_it_is_what_is_asked(again: Any, kept: list[bool]) -> None:
    """Each for itself."""
    source, once, twice = MemoryRepository(), MemoryRepository(), MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP))
    await converted(source, once)
    report = await converted(once, twice, again)
    assert [layer.kept for layer in report.images[0].layers] == kept


async def test_what_is_prioritised_comes_first() -> None:
    """Each path in the layer that shows it, with the links to it; what is missing is named."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP))
    report = await converted(source, sink, request(prioritized=[b"/sh", b"app", b"etc/conf", b"nowhere/\xe9"]))
    assert [[entry["name"] for entry in toc["entries"] if entry["type"] != "chunk"] for toc in tocs(sink)] == [
        ["sh", "bin/", "bin/sh", ".prefetch.landmark", "etc/", "etc/conf"],
        ["app", ".prefetch.landmark", "etc/", "etc/.wh.conf"],
    ]
    assert report.images[0].not_found == ("etc/conf", "nowhere/\\xe9")


async def test_nothing_but_the_input_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Not the number of workers, nor TMPDIR, the time zone, the locale or the umask."""
    source = MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP))
    digests = set()
    for workers, zone, mask in ((1, "UTC", 0o022), (5, "Pacific/Auckland", 0o077)):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        old = os.umask(mask)
        try:
            digests.add((await converted(source, MemoryRepository(), request(workers=workers))).digest)
        finally:
            os.umask(old)
    assert len(digests) == 1


async def test_a_shared_blob_in_another_place_is_another_layer() -> None:
    """What a layer implies depends on what is below it."""
    source, sink = MemoryRepository(), MemoryRepository()
    other: list[Item] = [(Entry(b"etc", "dir", 0o711, 5), b"")]
    images = [
        source.add_image(tar_of(below), tar_of(APP), config=platform) for below, platform in ((BASE, AMD64), (other, ARM64))
    ]
    source.add_index(*({**image, "platform": platform} for image, platform in zip(images, (AMD64, ARM64), strict=True)))
    report = await converted(source, sink)
    modes = [tocs(sink, image.digest)[1]["entries"][2]["mode"] for image in report.images]
    assert modes == [0o700, 0o711]


async def test_what_cannot_follow_is_named() -> None:
    """Signatures under cosign's tags, a subject; only where the digest changes."""
    source, sink = MemoryRepository(), MemoryRepository()
    image = source.add_image(tar_of(APP), subject={"mediaType": OCI_MANIFEST, "digest": digest_of(b"s"), "size": 1})
    source.documents[image["digest"].replace(":", "-") + ".sig"] = source.documents["v1"]
    report = await converted(source, sink)
    assert len(report.lost) == 2
    assert any(digest_of(b"s") in loss for loss in report.lost)
    assert any(f"a signature of {image['digest']}" in loss for loss in report.lost)
    sink.documents[report.digest.replace(":", "-") + ".sig"] = sink.documents["v1"]
    assert (await converted(sink, MemoryRepository())).lost == ()


@pytest.mark.parametrize(
    ("blob", "media_type", "diff_id", "expected"),
    [
        (gzip.compress(TAR)[:-20], OCI_LAYER_GZIP, digest_of(TAR), InvalidInput),
        (gzip.compress(TAR), OCI_LAYER_GZIP, digest_of(b"else"), DigestMismatch),
        (gzip.compress(b"<html>" * 100), OCI_LAYER_GZIP, digest_of(b"<html>" * 100), InvalidTar),
        (gzip.compress(LINK_TO_NOTHING), OCI_LAYER_GZIP, digest_of(LINK_TO_NOTHING), InvalidTar),
        (b"{}", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", digest_of(b"{}"), InvalidManifest),
        (b"x", OCI_LAYER_GZIP + "+encrypted", digest_of(b"x"), InvalidManifest),
    ],
)
async def test_bad_input_leaves_the_destination_alone(
    blob: bytes, media_type: str, diff_id: Digest, expected: type[LazyfsError]
) -> None:
    """Even where an earlier layer was good; the layer is named."""
    source = MemoryRepository()
    with_layer(source, blob, media_type, diff_id)
    error = await refused(source, MemoryRepository())
    assert isinstance(error, expected)
    assert digest_of(blob) in str(error)


async def test_a_config_that_does_not_fit_is_refused() -> None:
    """Another number of diff IDs than layers; no image config at all; an index of nothing."""
    source = MemoryRepository()
    layer = source.add_blob(gzip.compress(TAR), OCI_LAYER_GZIP)
    source.add_manifest([layer, layer], [digest_of(TAR)])
    error = await refused(source, MemoryRepository())
    assert isinstance(error, InvalidManifest)
    assert "2 layers" in str(error)
    source.add_manifest([layer], [], config={"rootfs": None})
    assert isinstance(await refused(source, MemoryRepository()), InvalidManifest)
    source.add_index()
    assert isinstance(await refused(source, MemoryRepository()), InvalidManifest)


@pytest.mark.parametrize(
    ("said", "pack"), [(OCI_LAYER_TAR, gzip.compress), (DOCKER_LAYER_GZIP, zstandard.compress), (OCI_LAYER_ZSTD, bytes)]
)
async def test_the_new_media_types_are_true(said: str, pack: Callable[[bytes], bytes]) -> None:
    """Also where the source's manifest names another compression, or another kind of manifest, than is there."""
    source, sink = MemoryRepository(), MemoryRepository()
    layer = source.add_blob(pack(TAR), said)
    source.add_manifest([layer], [digest_of(TAR)], mediaType=DOCKER_MANIFEST)
    await converted(source, sink)
    assert sink.body()["mediaType"] == OCI_MANIFEST
    assert [layer["mediaType"] for layer in sink.body()["layers"]] == [OCI_LAYER_GZIP]
    assert sink.layers()[0].startswith(b"\x1f\x8b")


async def test_a_layer_that_stays_gets_a_true_type() -> None:
    """A lazy layer that is named a plain tar is kept, and named gzip from then on."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.add_image(TAR)
    await converted(source, source)
    body = source.body()
    body["layers"][0]["mediaType"] = OCI_LAYER_TAR
    source.add_document(body, "v1")
    report = await converted(source, sink)
    assert report.images[0].layers[0].kept
    assert sink.body()["layers"][0]["mediaType"] == OCI_LAYER_GZIP


async def test_an_upload_that_fails_ends_the_conversion() -> None:
    """And no manifest is written."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP))

    async def broken(*_arguments: object) -> None:
        raise Unreachable("the registry is away")

    sink.put_blob = broken  # type: ignore[method-assign]
    with pytest.raises(BaseExceptionGroup) as caught:
        await converted(source, sink)
    assert isinstance(leaf(caught.value), Unreachable)
    assert sink.documents == {}


async def test_cancellation_ends_threads_and_leaves_nothing() -> None:
    """In the middle of a download, with other layers on their way."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.add_image(tar_of(BASE), tar_of(APP))
    reading = trio.Event()

    async def stall(_self: object, _count: int) -> bytes:
        reading.set()
        await trio.sleep_forever()
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch, trio.fail_after(30):
        patch.setattr("tests.unit.converter.places.Stream.receive_exactly", stall)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(converted, source, sink)
            await reading.wait()
            nursery.cancel_scope.cancel()
    assert (sink.blobs, sink.documents) == ({}, {})


async def test_many_layers_keep_their_order() -> None:
    """More than are fetched at once, of all sizes."""
    source, sink = MemoryRepository(), MemoryRepository()
    tars = [tar_of([(Entry(b"f%d" % number, "reg", size=number * 1000), bytes(number * 1000))]) for number in range(12)]
    source.add_image(*tars)
    await converted(source, sink)
    assert [toc["entries"][1]["name"] for toc in tocs(sink)] == [f"f{number}" for number in range(12)]


async def test_layers_that_are_too_much_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an image are in memory until the last one is indexed; each alone is small enough."""
    monkeypatch.setattr(bounds, "DESCRIPTION", 1 << 20)
    value = bytes(10_000)
    tars = [
        tar_of([(Entry(b"%d-%d" % (layer, number), "dir", xattrs=((b"user.x", value),)), b"") for number in range(80)])
        for layer in range(2)
    ]
    for together in (tars[:1], tars):
        source, sink = MemoryRepository(), MemoryRepository()
        source.add_image(*together)
        if len(together) == 1:
            await converted(source, sink)
        else:
            error = await refused(source, sink)
            assert isinstance(error, InvalidTar) and "in addition to the image's other layers" in str(error)


async def test_a_layer_that_comes_twice_is_sent_once() -> None:
    """As the empty layers of some builders do."""
    source, sink = MemoryRepository(), MemoryRepository()
    source.add_image(END, END, tar_of(APP), END)
    report = await converted(source, sink)
    digests = [layer.digest for layer in report.images[0].layers]
    assert digests[0] == digests[1] == digests[3]
    assert sink.done.count(f"blob {digests[0]}") == 1
