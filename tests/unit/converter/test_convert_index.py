"""Conversions of indexes: one image of several, all of them, indexes inside indexes, and what is not an image."""

from __future__ import annotations

import gzip

from converter.convert import ImageSelection
from lazyfs.errors import DigestMismatch, InvalidManifest, InvalidTar, NotFound
from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import DOCKER_LIST, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.format.platform import Platform
from lazyfs.source.selection import MAX_DEPTH
from tests.unit.converter.making import tar_of
from tests.unit.converter.places import AMD64, ARM64, MemoryRepository, converted
from tests.unit.converter.refusing import APP, BASE, TAR, refused, with_layer


async def test_an_index_survives_as_a_whole() -> None:
    """All platforms, the attestation that follows its image, and a blob that two images share is converted once."""
    source, sink = MemoryRepository(), MemoryRepository()
    images = [source.add_image(tar_of(BASE), tar_of(APP), config=platform) for platform in (AMD64, ARM64)]
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": images[0]["digest"]}
    statement = source.add_blob(b'{"in-toto": 1}', "application/vnd.in-toto+json")
    attestation = source.add_manifest([statement], [statement["digest"]], tag="attestation")
    unknown = {"os": "unknown", "architecture": "unknown"}
    source.add_index(
        {**images[0], "platform": AMD64},
        {**images[1], "platform": ARM64},
        {**attestation, "platform": unknown, "annotations": about},
    )
    report = await converted(source, sink)
    index = sink.body()
    assert [entry["platform"] for entry in index["manifests"]] == [AMD64, ARM64, unknown]
    new = [entry["digest"] for entry in index["manifests"]]
    assert index["manifests"][2]["annotations"]["vnd.docker.reference.digest"] == new[0]
    assert new[2] == attestation["digest"]
    assert sink.blobs[statement["digest"]] == b'{"in-toto": 1}'
    assert [image.platform for image in report.images] == ["linux/amd64", "linux/arm64"]
    assert sink.layers(new[0]) == sink.layers(new[1])
    for layer in source.body(images[0]["digest"])["layers"]:
        assert source.done.count(f"read {layer['digest']}") == 1
    assert any("1 attestations" in loss for loss in report.lost)
    again = await converted(sink, MemoryRepository())
    assert again.digest == report.digest


async def test_blobs_that_come_wrong_once_are_fetched_once_more() -> None:
    """Layers, and what is copied as it is. What comes wrong twice is an error: see test_download.py, and below."""
    source, sink = MemoryRepository(), MemoryRepository()
    image = source.add_image(TAR)
    statement = source.add_blob(b'{"in-toto": 1}', "application/vnd.in-toto+json")
    attestation = source.add_manifest([statement], [statement["digest"]], tag="attestation")
    unknown = {"os": "unknown", "architecture": "unknown"}
    source.add_index({**image, "platform": AMD64}, {**attestation, "platform": unknown})
    layer = digest_of(gzip.compress(TAR, mtime=0))
    source.comes_wrong = {layer, statement["digest"]}
    await converted(source, sink)
    assert sink.blobs[statement["digest"]] == b'{"in-toto": 1}'
    for digest in (layer, statement["digest"]):
        reads = [done for done in source.done if done.endswith(digest)]
        assert reads == [f"read {digest}", f"distrust {digest}", f"read {digest}"]
    source.blobs[statement["digest"]] = b'{"in-toto": 2}'
    assert isinstance(await refused(source, MemoryRepository()), DigestMismatch)


async def test_one_platform_of_an_index_stands_alone() -> None:
    """The destination is that manifest."""
    source, sink = MemoryRepository(), MemoryRepository()
    images = [source.add_image(tar_of(APP), config=platform) for platform in (AMD64, ARM64)]
    source.add_index(*({**image, "platform": platform} for image, platform in zip(images, (AMD64, ARM64), strict=True)))
    report = await converted(source, sink, None, ImageSelection(Platform("linux", "arm64"), named=True))
    assert "layers" in sink.body()
    assert sink.config()["architecture"] == "arm64"
    assert [image.platform for image in report.images] == ["linux/arm64"]


async def test_docker_lists_become_indexes() -> None:
    """With OCI's types all the way down."""
    source, sink = MemoryRepository(), MemoryRepository()
    image = source.add_image(tar_of(APP))
    body = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [{**image, "platform": AMD64}]}
    source.add_document(body, "v1", media_type=DOCKER_LIST)
    await converted(source, sink)
    assert sink.body()["mediaType"] == OCI_INDEX
    assert sink.documents["v1"].media_type == OCI_INDEX


async def test_a_platform_that_is_not_there() -> None:
    """Named with what there is, in an index and in a single image; a default is not a demand."""
    source, sink = MemoryRepository(), MemoryRepository()
    image = source.add_image(tar_of(APP))
    arm = ImageSelection(Platform("linux", "arm64"), named=True)
    error = await refused(source, sink, None, arm)
    assert isinstance(error, NotFound)
    assert "linux/amd64" in str(error)
    await converted(source, MemoryRepository(), None, ImageSelection(Platform("linux", "arm64"), named=False))
    source.add_index({**image, "platform": AMD64})
    error = await refused(source, sink, None, arm)
    assert isinstance(error, NotFound)
    assert "linux/amd64" in str(error)


async def test_a_bad_image_of_an_index_stops_the_others() -> None:
    """Nothing of the good one is at the destination either."""
    source = MemoryRepository()
    good = source.add_image(tar_of(BASE))
    with_layer(source, gzip.compress(b"rubbish" * 100), OCI_LAYER_GZIP, digest_of(b"rubbish" * 100))
    bad = {"mediaType": OCI_MANIFEST, "digest": source.documents["v1"].digest, "size": len(source.documents["v1"].data)}
    source.add_index({**good, "platform": AMD64}, {**bad, "platform": ARM64})
    assert isinstance(await refused(source, MemoryRepository()), InvalidTar)


async def test_indexes_inside_an_index_are_kept() -> None:
    """The nesting stays, each entry leads to what its image or index became, and whatever is not an image is there, too."""
    source, sink = MemoryRepository(), MemoryRepository()
    image = source.add_image(TAR)
    statement = source.add_manifest([source.add_blob(b"{}", "application/vnd.in-toto+json")], [], subject=image)
    artifact = source.add_document(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": source.add_blob(b"{}", "application/x"), "layers": []}
    )
    unknown = {"os": "unknown", "architecture": "unknown"}
    inner = source.add_index({**image, "platform": AMD64}, {**statement, "platform": unknown}, artifact)
    middle = source.add_index({**inner, "annotations": {"a": "b"}})
    source.add_index(middle, inner)
    report = await converted(source, sink)
    body = sink.body()
    assert [len(report.images), len(body["manifests"])] == [1, 2]
    assert {entry["mediaType"] for entry in body["manifests"]} == {OCI_INDEX}
    below = sink.body(body["manifests"][0]["digest"])["manifests"][0]
    assert below["annotations"] == {"a": "b"}
    assert below["digest"] == body["manifests"][1]["digest"]
    new, attestation, other = sink.body(below["digest"])["manifests"]
    assert new["digest"] == report.images[0].digest
    assert attestation["platform"] == unknown
    assert sink.body(attestation["digest"])["subject"]["digest"] == new["digest"]
    assert other == artifact


async def test_one_image_out_of_nested_indexes() -> None:
    """Without --all-platforms the way to it is gone through as a mount goes through it."""
    source, sink = MemoryRepository(), MemoryRepository()
    inner = source.add_index({**source.add_image(TAR), "platform": AMD64})
    source.add_index(inner)
    await converted(source, sink, None, ImageSelection(Platform("linux", "amd64"), named=False))
    assert len(sink.body()["layers"]) == 1


async def test_indexes_too_deep_are_refused() -> None:
    """A bound against endless chains of documents."""
    source = MemoryRepository()
    index = source.add_index({**source.add_image(TAR), "platform": AMD64})
    for _ in range(MAX_DEPTH):
        index = source.add_index(index)
    for selection in (None, ImageSelection(Platform("linux", "amd64"), named=False)):
        assert isinstance(await refused(source, MemoryRepository(), None, selection), InvalidManifest)
