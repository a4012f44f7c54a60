"""New documents out of old ones."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from converter.layer import NewLayer
from converter.rewrite import rewrite_attestation, rewrite_config, rewrite_index, rewrite_manifest
from lazyfs.format import dialects
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Index,
    Manifest,
    parse_config,
    parse_document,
)
from lazyfs.source.protocol import Document
from tests.dialect.front import ANNOTATION, FRONT

A, B, C, D = (digest_of(text) for text in (b"a", b"b", b"c", b"d"))
SOURCE = digest_of(b"source")


def layer(digest: Digest, diff_id: Digest, kept: bool = False) -> NewLayer:
    return NewLayer(digest, 99, diff_id, digest_of(b"toc"), 12345, 6, 7, kept)


def config(body: dict[str, Any], *layers: NewLayer) -> dict[str, Any]:
    data = json.dumps(body).encode()
    return json.loads(rewrite_config(parse_config(data, "config"), data, layers))  # type: ignore[no-any-return]


def manifest(body: dict[str, Any], *layers: NewLayer, data: bytes = b"config") -> tuple[Document, dict[str, Any]]:
    parsed = parse_document("", json.dumps(body).encode(), "image")
    assert isinstance(parsed, Manifest)
    document = rewrite_manifest(parsed, SOURCE, data, layers)
    return document, json.loads(document.data)


def described(digest: Digest, media_type: str = OCI_LAYER_GZIP, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": 5, **more}


def test_the_config_keeps_all_but_diff_ids() -> None:
    """History, unknown fields, their order."""
    old = {
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [A, B]},
        "history": [{"empty_layer": True}],
        "moby.x": [1, 2.5],
    }
    assert config(old, layer(C, C), layer(D, D)) == old | {"rootfs": {"type": "layers", "diff_ids": [C, D]}}


def test_labels_that_name_diff_ids_name_the_new_ones() -> None:
    """Buildpacks' metadata is JSON in a label; other digests in it stay."""
    metadata = json.dumps({"app": [{"sha": A}, {"sha": SOURCE}], "run": {"topLayer": B}})
    labels = {"io.buildpacks.lifecycle.metadata": metadata, "plain": "text"}
    old = {"rootfs": {"diff_ids": [A, B]}, "config": {"Labels": labels, "Cmd": [A]}}
    new = config(old, layer(C, C), layer(D, D))["config"]
    expected = {"app": [{"sha": C}, {"sha": SOURCE}], "run": {"topLayer": D}}
    assert json.loads(new["Labels"].pop("io.buildpacks.lifecycle.metadata")) == expected
    assert new == {"Labels": {"plain": "text"}, "Cmd": [A]}


def test_diff_ids_that_change_places_are_not_confused() -> None:
    """What is new for one layer may be old for another."""
    old = {"rootfs": {"diff_ids": [A, B]}, "config": {"Labels": {"l": f"{A} {B}"}}}
    assert config(old, layer(A, B), layer(B, A))["config"]["Labels"] == {"l": f"{B} {A}"}


def test_a_config_without_a_change_is_the_same_bytes() -> None:
    """Down to its blanks."""
    data = b'{ "rootfs" : {"diff_ids":["%b"]}, "os":"linux" }' % A.encode()
    assert rewrite_config(parse_config(data, "config"), data, [layer(C, A)]) is data


def test_docker_manifests_become_ocis() -> None:
    """Types, digests, sizes and the format's annotations; the source is named; what is unknown stays."""
    old = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": described(A, DOCKER_CONFIG, data="AAAA"),
        "layers": [described(B, DOCKER_LAYER_GZIP, unknown=1, urls=["http://elsewhere"])],
        "x-unknown": {"y": 1},
    }
    document, new = manifest(old, layer(C, C))
    assert document.media_type == OCI_MANIFEST
    assert document.digest == digest_of(document.data)
    assert new == {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(b"config"), "size": 6},
        "layers": [
            {
                "mediaType": OCI_LAYER_GZIP,
                "digest": C,
                "size": 99,
                "unknown": 1,
                "annotations": {
                    "containerd.io/snapshot/stargz/toc.digest": digest_of(b"toc"),
                    "io.containers.estargz.uncompressed-size": "12345",
                },
            }
        ],
        "x-unknown": {"y": 1},
        "annotations": {"dev.lazyfs.source.digest": SOURCE},
    }


def test_annotations_of_other_formats_go_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that claims to be both zstd:chunked and eStargz is refused by containers/storage; one that claims another dialect
    that we read would be taken for that."""
    monkeypatch.setattr(dialects, "DIALECTS", (FRONT, *dialects.DIALECTS))
    annotations = {
        "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
        "io.containers.zstd-chunked.manifest-checksum": "x",
        "containerd.io/snapshot/stargz/toc.digest": A,
        ANNOTATION: A,
        "org.example": "stays",
    }
    old = {
        "schemaVersion": 2,
        "config": described(A, OCI_CONFIG),
        "layers": [described(B, OCI_LAYER_ZSTD, annotations=annotations)],
        "annotations": {"org.example": "stays too"},
        "subject": described(D, OCI_MANIFEST),
    }
    _, new = manifest(old, layer(C, C))
    assert set(new["layers"][0]["annotations"]) == {
        "containerd.io/snapshot/stargz/toc.digest",
        "io.containers.estargz.uncompressed-size",
        "org.example",
    }
    assert new["annotations"] == {"org.example": "stays too", "dev.lazyfs.source.digest": SOURCE}
    assert "subject" not in new


def test_nothing_changed_is_the_same_document() -> None:
    """Kept layers, the same config, OCI types: the digest stays, with or without a mediaType of its own."""
    for more in ({}, {"mediaType": OCI_MANIFEST}):
        old = {
            "schemaVersion": 2,
            **more,
            "config": {**described(digest_of(b"config"), OCI_CONFIG), "size": 6},
            "layers": [{**described(B), "size": 99, "annotations": {"a": "b"}}],
        }
        document, new = manifest(old, layer(B, B, kept=True))
        assert document.digest == SOURCE
        assert new == old


def index_of(*entries: dict[str, Any], media_type: str = OCI_INDEX) -> Index:
    parsed = parse_document("", json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode(), "image")
    assert isinstance(parsed, Index)
    return parsed


def test_an_index_keeps_platforms_and_follows_attestations() -> None:
    """Each entry with the digest and size of its new document; what speaks about an image speaks about the new one."""
    attestation = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": A}
    index = index_of(
        described(A, DOCKER_MANIFEST, platform={"os": "linux", "architecture": "amd64"}),
        described(B, OCI_MANIFEST, platform={"os": "unknown", "architecture": "unknown"}, annotations=attestation),
        media_type=DOCKER_LIST,
    )
    documents = {A: Document(OCI_MANIFEST, C, b"12345678"), B: Document(OCI_MANIFEST, B, b"12345")}
    document = rewrite_index(index, SOURCE, documents)
    assert document.media_type == OCI_INDEX
    assert msgspec.json.decode(document.data) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": C, "size": 8, "platform": {"os": "linux", "architecture": "amd64"}},
            {
                "mediaType": OCI_MANIFEST,
                "digest": B,
                "size": 5,
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": attestation | {"vnd.docker.reference.digest": C},
            },
        ],
        "annotations": {"dev.lazyfs.source.digest": SOURCE},
    }


def test_an_index_of_nothing_new_is_the_same_document() -> None:
    """So that converting twice is converting once."""
    index = index_of(described(A, OCI_MANIFEST))
    assert rewrite_index(index, SOURCE, {A: Document(OCI_MANIFEST, A, b"12345")}) == Document(OCI_INDEX, SOURCE, index.data)


def test_an_attestation_changes_only_its_subject() -> None:
    """If it names its image as such; else its bytes stay."""
    body = {"schemaVersion": 2, "config": described(D, OCI_CONFIG), "layers": [], "subject": described(A, OCI_MANIFEST, extra=1)}
    parsed = parse_document("", json.dumps(body).encode(), "attestation")
    assert isinstance(parsed, Manifest)
    document = rewrite_attestation(parsed, B, {A: Document(OCI_MANIFEST, C, b"12345678")})
    assert json.loads(document.data)["subject"] == {"mediaType": OCI_MANIFEST, "digest": C, "size": 8, "extra": 1}
    assert document.digest == digest_of(document.data)
    assert rewrite_attestation(parsed, B, {}) == Document(OCI_MANIFEST, B, parsed.data)


def test_other_spellings_leave_no_second_field() -> None:
    """Go takes the last of two names that differ in case: what we write must be the only one. Nulls in maps are entries, and stay."""
    old = {
        "RootFS": {"Type": "x", "Diff_IDs": [A]},
        "Config": {"labels": {"a": A, "b": None}, "Volumes": {"/v": None}},
    }
    assert config(old, layer(B, B)) == {
        "rootfs": {"type": "layers", "diff_ids": [B]},
        "config": {"Labels": {"a": B, "b": None}, "Volumes": {"/v": None}},
    }
    body = {"Config": described(A, OCI_CONFIG), "LAYERS": [described(A)], "Subject": described(B), "annotations": None}
    written = manifest(body, layer(B, B))[1]
    assert sorted(written) == ["annotations", "config", "layers", "mediaType", "schemaVersion"]
    assert [entry["digest"] for entry in written["layers"]] == [B]
