"""The labels of a pull: what containerd's garbage collector walks along, and what a snapshotter reads."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidManifest
from lazyfs.format import dialects
from lazyfs.format.dialect import TocClaim
from lazyfs.format.digest import Digest, digest_of
from lazyfs.format.estargz import ESTARGZ
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
    Descriptor,
    parse_document,
)
from lazyfs.pull.labels import (
    chain_ids,
    children_labels,
    fits,
    ingest_name,
    layer_labels,
    not_lazy,
    snapshot_reference,
    source_label,
)
from lazyfs.snapshots.labels import LAYERS, Claim, ListedLayer, Ordinary, read_labels
from lazyfs.source.reference import parse_reference
from tests.dialect.front import ANNOTATION, FRONT

TOC = "containerd.io/snapshot/stargz/toc.digest"
CONTENT = "containerd.io/gc.ref.content."
SOURCE = "containerd.io/distribution.source."
NAME = "host:5000/repo:v1"


def digest(seed: object) -> Digest:
    return digest_of(repr(seed).encode())


def described(seed: object, kind: str = OCI_LAYER_GZIP, toc: str = "") -> Descriptor:
    return Descriptor(kind, digest(seed), 1000, {TOC: toc} if toc else {}, None, {})


def lazy(seed: object) -> Descriptor:
    return described(seed, toc=digest((seed, "toc")))


def raw(*described: Descriptor) -> list[dict[str, object]]:
    return [{"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in described]


def test_chain_ids_are_the_specifications() -> None:
    """A layer's is its diff ID if it is the lowest, else the digest of the one below and its own; written out for two."""
    one, two = digest(1), digest(2)
    assert chain_ids([]) == ()
    assert chain_ids([one]) == (one,)
    assert chain_ids([one, two]) == (one, digest_of(f"{one} {two}".encode()))
    # An image of the lab, as containerd itself named its snapshots.
    base = Digest("sha256:78caab241beb5da1d869ef6e00c2471d32fbb9be4e954aaaa7f90822a86d98fa")
    common = Digest("sha256:86655cfaeaf4b67a590405ef42b98c94d22e2a67dba3faf427e12749a88d4205")
    assert chain_ids([base, common])[1] == "sha256:874ca93d7b3d2c4ecc643d4031ad78bb4da9fc86441c2e9d5a2666c16cbb67f2"


@pytest.mark.parametrize(
    ("kind", "config", "layer"),
    [(OCI_MANIFEST, OCI_CONFIG, OCI_LAYER_GZIP), (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER_GZIP)],
)
def test_a_manifest_keeps_its_config_and_layers(kind: str, config: str, layer: str) -> None:
    """Each under a key of its own, counted from 0; the config's has no number."""
    parts = [described("c", config), described(1, layer), described(2, layer)]
    data = {"schemaVersion": 2, "mediaType": kind, "config": raw(parts[0])[0], "layers": raw(*parts[1:])}
    found = children_labels(parse_document(kind, json.dumps(data).encode()))
    assert found == {f"{CONTENT}config": digest("c"), f"{CONTENT}l.0": digest(1), f"{CONTENT}l.1": digest(2)}


@pytest.mark.parametrize(("kind", "child"), [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)])
def test_an_index_keeps_its_manifests(kind: str, child: str) -> None:
    """All of them, and what is of no known kind without a letter."""
    parts = [described(1, child), described("odd", "application/odd"), described(2, child)]
    data = {"schemaVersion": 2, "mediaType": kind, "manifests": raw(*parts)}
    found = children_labels(parse_document(kind, json.dumps(data).encode()))
    assert found == {f"{CONTENT}m.0": digest(1), f"{CONTENT}0": digest("odd"), f"{CONTENT}m.1": digest(2)}


def test_a_config_keeps_the_uppermost_snapshot() -> None:
    """Under the snapshotter's name."""
    assert snapshot_reference("lazyfs", digest(1)) == {"containerd.io/gc.ref.snapshot.lazyfs": digest(1)}


@pytest.mark.parametrize(
    ("reference", "known", "expected"),
    [
        ("python:3.12", {}, {f"{SOURCE}docker.io": "library/python"}),
        ("host:5000/a/b:v1", {}, {f"{SOURCE}host": "a/b"}),
        ("[::1]:5000/a:v1", {}, {f"{SOURCE}::1": "a"}),
        ("host:5000/b:v1", {f"{SOURCE}host": "c,a", f"{SOURCE}other": "d"}, {f"{SOURCE}host": "a,b,c"}),
        ("host:5000/b:v1", {f"{SOURCE}host": "a,b"}, {f"{SOURCE}host": "a,b"}),
        ("host:5000/b:v1", {f"{SOURCE}host": "a" * 4096}, {}),
    ],
)
def test_content_says_where_it_came_from(reference: str, known: dict[str, str], expected: dict[str, str]) -> None:
    """By the host without its port, as containerd writes it; earlier repositories stay, and what does not fit is left out."""
    assert source_label(parse_reference(reference), known) == expected


def test_a_lazy_layers_labels_are_understood() -> None:
    """What is written for a snapshotter is what lazyfsd reads; it need not ask for the manifest."""
    layers = [lazy(1), described(2), lazy(3), lazy(4)]
    found = read_labels(layer_labels(NAME, digest("m"), layers, 2, digest("chain")))
    labelled = tuple(
        ListedLayer(one.digest, one.size, TocClaim(ESTARGZ, Digest(one.annotations[TOC])) if one.annotations else None)
        for one in layers
    )
    assert found == Claim(
        digest("chain"), NAME, digest(3), TocClaim(ESTARGZ, digest((3, "toc"))), digest("m"), (digest(4),), 1000, labelled
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (described(1), "not converted"),
        (described(1, toc="sha256:short"), "not a sha256 digest"),
        (described(1, toc="x" * 5000), "not a sha256 digest"),
    ],
)
def test_a_layer_that_cannot_be_lazy_says_why(layer: Descriptor, reason: str) -> None:
    """To us, and to the snapshotter by what is missing; no label is longer than containerd allows."""
    assert reason in not_lazy(layer)
    labels = layer_labels(NAME, digest("m"), [layer, lazy(2)], 0, digest("chain"))
    assert isinstance(read_labels(labels), Ordinary)
    assert all(fits(*label) for label in labels.items())
    assert not not_lazy(lazy(2))


def test_what_is_no_layer_is_an_error() -> None:
    """An encrypted layer is none that containerd could unpack."""
    with pytest.raises(InvalidManifest, match="encrypted"):
        not_lazy(described(1, OCI_LAYER_GZIP + "+encrypted"))


@given(st.integers(1, 200), st.data())
def test_labels_hold_as_many_layers_as_fit(count: int, data: st.DataObject) -> None:
    """However many layers an image has, each label is short enough, and says the truth about a part of them."""
    layers = [lazy(number) for number in range(count)]
    number = data.draw(st.integers(0, count - 1))
    labels = layer_labels(NAME, digest("m"), layers, number, digest("chain"))
    assert all(fits(*label) for label in labels.items())
    claim = read_labels(labels)
    assert isinstance(claim, Claim)
    assert claim.following == tuple(layer.digest for layer in layers[number + 1 :])[: len(claim.following)]
    assert [labelled.digest for labelled in claim.layers] == [layer.digest for layer in layers][: len(claim.layers)]
    assert len(claim.layers) >= min(count, 28)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (OCI_INDEX, "index"),
        (DOCKER_LIST, "index"),
        (DOCKER_MANIFEST, "manifest"),
        (OCI_CONFIG, "config"),
        (OCI_LAYER_ZSTD, "layer"),
        (DOCKER_LAYER_GZIP, "layer"),
        ("application/odd", "unknown"),
    ],
)
def test_ingests_are_named_as_containerds_client_names_them(kind: str, name: str) -> None:
    """So that what one of the two has begun the other finishes."""
    assert ingest_name(kind, digest(1)) == f"{name}-{digest(1)}"


def test_layers_of_another_dialect_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its annotations become labels, and the list of layers names it; a lazyfsd that does not know it believes none of the list."""
    monkeypatch.setattr(dialects, "DIALECTS", (FRONT, *dialects.DIALECTS))
    front = lazy(1)
    front = msgspec.structs.replace(front, annotations={ANNOTATION: front.annotations[TOC]})
    layers = [front, lazy(2), described(3)]
    labels = layer_labels(NAME, digest("m"), layers, 0, digest("chain"))
    found = read_labels(labels)
    assert isinstance(found, Claim)
    assert found.toc.dialect == FRONT
    assert [layer.toc and layer.toc.dialect for layer in found.layers] == [FRONT, ESTARGZ, None]
    assert [layer.descriptor.annotations for layer in found.layers] == [layer.annotations for layer in layers]
    monkeypatch.setattr(dialects, "DIALECTS", (ESTARGZ,))
    assert read_labels(labels) == Ordinary("has no TOC digest in its manifest: it was not converted")
    found = read_labels(layer_labels(NAME, digest("m"), layers, 1, digest("chain")) | {LAYERS: labels[LAYERS]})
    assert isinstance(found, Claim)
    assert found.layers == ()
