"""Manifests, indexes, configs and platforms, as found in the wild and malformed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import InvalidManifest
from lazyfs.format import manifest as m
from lazyfs.format.platform import Platform, parse_platform

A = "sha256:" + "a" * 64
B = "sha256:" + "b" * 64


def blob(media_type: str = m.OCI_LAYER_GZIP, **more: Any) -> dict[str, Any]:
    """A descriptor."""
    return {"mediaType": media_type, "digest": A, "size": 7, **more}


def image(**more: Any) -> dict[str, Any]:
    """A manifest of one layer."""
    return {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "config": blob(m.OCI_CONFIG), "layers": [blob()], **more}


def index(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An index of `entries`."""
    return {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": list(entries), **more}


def parse(value: object, media_type: str = "") -> m.Manifest | m.Index:
    """`value` through JSON."""
    return m.parse_document(media_type, json.dumps(value).encode())


def parse_index(*platforms: str, attest: tuple[int, ...] = ()) -> m.Index:
    """An index with one image a platform, digests 0, 1, ...; those in `attest` are attestations."""
    entries = []
    for number, name in enumerate(platforms):
        os, architecture, *variant = name.split("/")
        extra = {"annotations": {m.REFERENCE_TYPE: "attestation-manifest"}} if number in attest else {}
        platform = {"os": os, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
        entries.append({"mediaType": m.OCI_MANIFEST, "digest": f"sha256:{number:064x}", "size": 1, "platform": platform, **extra})
    found = parse(index(*entries))
    assert isinstance(found, m.Index)
    return found


def test_a_manifest_keeps_every_field_it_does_not_know() -> None:
    """Unknown fields of the manifest and of its descriptors stay in `raw`, for rewriting."""
    layer = blob(annotations={"k": "v"}, urls=["https://x"], future={"a": [1]})
    found = parse(image(layers=[layer], artifactType="x", future=3))
    assert isinstance(found, m.Manifest)
    assert found.raw["future"] == 3
    assert found.layers[0].raw == layer
    assert found.layers[0].annotations == {"k": "v"}
    assert (found.config.digest, found.config.size) == (A, 7)
    assert json.loads(found.data) == found.raw


@pytest.mark.parametrize(
    ("own", "header", "expected"),
    [
        (m.OCI_MANIFEST, "", m.OCI_MANIFEST),
        (None, m.DOCKER_MANIFEST + "; charset=utf-8", m.DOCKER_MANIFEST),
        (None, "application/octet-stream", m.OCI_MANIFEST),
        (m.DOCKER_MANIFEST, "application/json", m.DOCKER_MANIFEST),
    ],
)
def test_media_type_comes_from_the_header_or_the_document(own: str | None, header: str, expected: str) -> None:
    """Either may be missing or generic; then the other one counts."""
    value = image()
    if own is None:
        del value["mediaType"]
    else:
        value["mediaType"] = own
    assert parse(value, header).media_type == expected


def test_a_document_without_any_type_is_what_it_holds() -> None:
    """Old OCI writers give no mediaType: `manifests` makes an index."""
    value = index(blob(m.OCI_MANIFEST))
    del value["mediaType"]
    assert isinstance(parse(value), m.Index)


def test_go_writes_no_layers_as_null() -> None:
    """`"layers": null` is an image without layers."""
    found = parse(image(layers=None))
    assert isinstance(found, m.Manifest)
    assert found.layers == ()


@pytest.mark.parametrize(
    ("value", "header", "message"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "", "schema 1"),
        (image(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        ({"schemaVersion": 3}, "", "config of the document is missing"),
        (image(manifests=[]), "", "index and a manifest at once"),
        (index(config=blob()), "", "index and a manifest at once"),
        (image(fsLayers=[]), "", "schema 1 and of schema 2"),
        (image(), m.OCI_INDEX, "served as"),
        (image(mediaType="application/vnd.cncf.helm.config.v1+json"), "application/octet-stream", "neither"),
        (image(mediaType=7), "", "not text"),
        (image(mediaType=m.OCI_INDEX), "", "holds what only the other"),
        (index(mediaType=m.OCI_MANIFEST), "", "holds what only the other"),
        ({"schemaVersion": 2, "layers": [blob()]}, m.OCI_MANIFEST, "config of the document is missing"),
        (image(layers={}), "", "not a list"),
        (image(layers=[3]), "", r"layers\[0\] of the document is missing or no object"),
        (image(config=None), "", "config of the document is missing"),
        (image(layers=[blob()] * 1001), "", "over the limit of 1000"),
        (image(layers=[blob() | {"size": -1}]), "", "not a count of bytes"),
        (image(layers=[blob() | {"size": 1 << 63}]), "", "not a count of bytes"),
        (image(layers=[blob() | {"size": 1.0}]), "", "not a count of bytes"),
        (image(layers=[blob() | {"size": True}]), "", "not a count of bytes"),
        (image(layers=[blob() | {"size": "7"}]), "", "not a count of bytes"),
        (image(layers=[blob() | {"size": None}]), "", "the size of layers.0. of the document is missing"),
        (image(layers=[blob() | {"size": 0}]), "", "0 for what is not empty"),
        (image(layers=[blob() | {"digest": "sha512:" + "a" * 128}]), "", "not a sha256 digest"),
        (image(layers=[{"mediaType": m.OCI_LAYER_TAR, "size": 3}]), "", "not a sha256 digest"),
        (image(layers=[blob(annotations={"a": 1})]), "", "the annotation 'a' of layers.0. of the document is 1"),
        (image(annotations=[]), "", "annotations"),
        (index(blob(platform="linux")), "", "platform"),
        ([], "", "no object"),
    ],
)
def test_what_has_no_single_meaning_is_refused(value: object, header: str, message: str) -> None:
    """Every broken document gets an InvalidManifest that says what is wrong with it."""
    with pytest.raises(InvalidManifest, match=message):
        parse(value, header)


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":"\xff"}', b"[" * 100_000, b"\x00"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    """Broken, cut, wrongly encoded and absurdly nested JSON alike."""
    with pytest.raises(InvalidManifest):
        m.parse_document(m.OCI_MANIFEST, data)


def test_a_document_over_4_mib_is_refused_unparsed() -> None:
    """The size is checked before anything else is."""
    with pytest.raises(InvalidManifest, match="over the limit"):
        m.parse_document(m.OCI_MANIFEST, b" " * ((4 << 20) + 1))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["mediaType", "digest", "size", "platform", "annotations", "os", "architecture"]),
                inner,
                max_size=4,
            )
        ),
    ),
    st.sampled_from(["config", "layers", "manifests", "mediaType", "annotations", "schemaVersion"]),
)
def test_any_json_parses_or_is_refused(value: object, key: str) -> None:
    """Whatever stands in a field: a value or an InvalidManifest, never another exception."""
    for whole in (image(**{key: value}), index(**{key: value}), image(layers=[blob() | {key: value}])):
        with contextlib.suppress(InvalidManifest):
            parse(whole)


def test_config_gives_diff_ids_and_platform() -> None:
    """The parts that concern layers."""
    raw = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "rootfs": {"type": "layers", "diff_ids": [A, B]},
        "history": [],
    }
    config = m.parse_config(json.dumps(raw).encode(), "config")
    assert config.diff_ids == (A, B)
    assert config.platform == Platform("linux", "arm64")


@pytest.mark.parametrize(
    "value",
    [
        {"name": "chart", "version": "1.0", "apiVersion": "v2"},
        {"architecture": "wasm", "os": "wasip2", "layerDigests": [A]},
        {},
        {"rootfs": []},
    ],
)
def test_what_configures_no_image_is_named_so(value: object) -> None:
    """Helm's and wasm's configs, and an artifact's empty one."""
    with pytest.raises(InvalidManifest, match="the config of x is not an image config"):
        m.parse_config(json.dumps(value).encode(), "the config of x")


@pytest.mark.parametrize("diff_ids", [["md5:1"], [3], [A] * 1001])
def test_bad_diff_ids_are_refused(diff_ids: list[object]) -> None:
    """Each diff ID must be a digest, and their number is bounded."""
    with pytest.raises(InvalidManifest):
        m.parse_config(json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode(), "config")


@pytest.mark.parametrize(
    "media_type",
    [
        m.OCI_LAYER_GZIP,
        m.OCI_LAYER_ZSTD,
        m.OCI_LAYER_TAR,
        m.DOCKER_LAYER_GZIP,
        m.DOCKER_LAYER_TAR,
        m.DOCKER_LAYER_ZSTD,
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layers_that_are_tars(media_type: str) -> None:
    """OCI's and Docker's types, those of foreign layers as well: the registry may hold them."""
    found = parse(image(layers=[blob(media_type)]))
    assert isinstance(found, m.Manifest)
    m.check_layer_type(found.layers[0])
    assert m.is_image(found)


@pytest.mark.parametrize(
    ("media_type", "message"),
    [
        (m.OCI_LAYER_GZIP + "+encrypted", "is encrypted"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "not a layer of a container image"),
        ("application/wasm", "not a layer of a container image"),
        ("", "not a layer of a container image"),
    ],
)
def test_layers_that_are_no_tars_are_named(media_type: str, message: str) -> None:
    """The error names the layer, its type, and why not."""
    found = parse(image(layers=[blob(media_type)]))
    assert isinstance(found, m.Manifest)
    with pytest.raises(InvalidManifest, match=message) as caught:
        m.check_layer_type(found.layers[0])
    assert A in str(caught.value)


@pytest.mark.parametrize(
    ("there", "asked", "chosen"),
    [
        (("linux/amd64", "linux/arm64/v8"), "linux/arm64", 1),
        (("linux/amd64", "linux/arm64"), "linux/arm64/v8", 1),
        (("linux/arm/v5", "linux/arm/v6"), "linux/arm/v7", 1),
        (("linux/arm/v5", "linux/arm/v7", "linux/arm/v6"), "linux/arm/v7", 1),
        (("linux/arm/v6", "linux/arm"), "linux/arm", 1),
        (("linux/amd64", "linux/amd64/v2"), "linux/amd64/v3", 1),
        (("linux/amd64/v3", "linux/amd64"), "linux/amd64", 1),
        (("linux/arm64",), "linux/arm64/v9", 0),
        (("windows/amd64", "linux/amd64", "linux/amd64"), "linux/amd64", 1),
    ],
)
def test_the_best_platform_is_chosen(there: tuple[str, ...], asked: str, chosen: int) -> None:
    """The same variant, else the newest older one; of two equals the first."""
    assert m.candidates(parse_index(*there), parse_platform(asked))[0].digest == f"sha256:{chosen:064x}"


@pytest.mark.parametrize(
    ("there", "asked"), [(("linux/arm/v7",), "linux/arm/v6"), (("linux/386",), "linux/amd64"), ((), "linux/amd64")]
)
def test_no_platform_that_fits(there: tuple[str, ...], asked: str) -> None:
    """A newer variant or another architecture is never taken."""
    assert not m.candidates(parse_index(*there), parse_platform(asked))


def test_attestations_are_never_candidates() -> None:
    """Neither by BuildKit's annotation, even where they claim our platform, nor by its platform."""
    found = parse_index("linux/amd64", "linux/amd64", "unknown/unknown", attest=(0,))
    assert [entry.digest for entry in m.candidates(found, parse_platform("linux/amd64"))] == [f"sha256:{1:064x}"]


def test_artifacts_come_behind_images() -> None:
    """A SOCI index stands in an image's index with the image's platform."""
    platform = {"os": "linux", "architecture": "amd64"}
    found = parse(
        index(
            blob(m.OCI_MANIFEST, platform=platform, artifactType="application/vnd.amazon.soci.index.v2+json"),
            blob(m.OCI_MANIFEST, platform=platform) | {"digest": B},
            blob("application/vnd.example.thing", platform=platform),
        )
    )
    assert isinstance(found, m.Index)
    assert [entry.digest for entry in m.candidates(found, parse_platform("linux/amd64"))] == [B, A]


@pytest.mark.parametrize("platform", [None, {}, {"os": "", "architecture": ""}, {"os": None}])
def test_who_names_no_platform_comes_last(platform: object) -> None:
    """Its config has the platform. An empty object counts as absent."""
    entries = [blob(m.OCI_MANIFEST, platform=platform), blob(m.OCI_INDEX, platform={"os": "linux", "architecture": "amd64"})]
    found = parse(index(*entries))
    assert isinstance(found, m.Index)
    assert [entry.media_type for entry in m.candidates(found, parse_platform("linux/amd64"))] == [m.OCI_INDEX, m.OCI_MANIFEST]


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({"schemaVersion": None}, ""),
        ({"schemaVersion": 1}, ""),
        ({"mediaType": None}, m.OCI_MANIFEST),
        ({"mediaType": m.DOCKER_MANIFEST}, m.OCI_MANIFEST),
        ({"mediaType": "application/json"}, m.OCI_MANIFEST),
        ({"manifests": None, "fsLayers": None, "annotations": None, "subject": None}, ""),
        ({"annotations": {"a": None}}, ""),
        ({"layers": [blob(annotations=None, platform=None, urls=None, data=None)]}, ""),
        ({"layers": [{"MediaType": m.OCI_LAYER_GZIP, "DIGEST": A, "Size": 7}]}, ""),
    ],
)
def test_what_both_peers_read_is_read(changes: dict[str, Any], header: str) -> None:
    """containerd and skopeo were tried with each of these (tests/documents)."""
    found = parse(image(**changes), header)
    assert isinstance(found, m.Manifest)
    assert (found.layers[0].media_type, found.layers[0].digest, found.layers[0].size) == (m.OCI_LAYER_GZIP, A, 7)
    assert found.annotations == {}


def test_the_config_of_any_case() -> None:
    """A config as Docker's own API shows it, and one whose fields are null."""
    config = m.parse_config(json.dumps({"Os": "linux", "RootFS": {"Type": "layers", "Diff_IDs": [A]}}).encode(), "config")
    assert (config.os, config.diff_ids) == ("linux", (A,))
    empty = m.parse_config(b'{"os": null, "architecture": null, "rootfs": {"type": null, "diff_ids": null}}', "config")
    assert (str(empty.platform), empty.diff_ids) == ("", ())


def test_what_is_an_image() -> None:
    """A chart, a signature and an artifact without layers are none; an image may have no layers."""
    for value, expected in (
        (image(layers=[]), True),
        (image(layers=[blob("application/vnd.in-toto+json")]), False),
        (image(layers=[], config=blob("application/vnd.oci.empty.v1+json")), False),
        (image(config=blob("application/vnd.example+json")), True),
    ):
        found = parse(value)
        assert isinstance(found, m.Manifest)
        assert m.is_image(found) is expected


def test_an_entry_that_cannot_be_used_does_no_harm_to_the_others() -> None:
    """Another algorithm, or no digest: skopeo passes over them as well. What Go cannot decode stays an error."""
    sha512 = blob(m.OCI_MANIFEST, annotations={"a": "b"}) | {"digest": "sha512:" + "a" * 128}
    found = parse(index(sha512, blob(m.OCI_MANIFEST), blob(m.OCI_MANIFEST) | {"digest": "", "size": -1}))
    assert isinstance(found, m.Index)
    assert [entry.digest for entry in found.manifests] == [A]
    assert [entry.annotations for entry in found.unusable] == [{"a": "b"}, {}]
    assert "manifests[0] of the document is 'sha512:" in found.unusable[0].reason
    for broken in (blob(m.OCI_MANIFEST) | {"digest": 3}, blob(m.OCI_MANIFEST) | {"size": "7"}, 3):
        with pytest.raises(InvalidManifest):
            parse(index(broken))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["https://a/x", "HTTP://b"], ("https://a/x", "HTTP://b")),
        (["file:///etc/passwd", "ftp://a", "", None, 1, "//a/x", "http://b"], ("http://b",)),
        ("http://a", ()),
        (None, ()),
        ([f"http://{number}" for number in range(1000)], tuple(f"http://{number}" for number in range(8))),
    ],
)
def test_urls_of_a_blob(urls: object, expected: tuple[str, ...]) -> None:
    """http and https, a bounded number; what cannot be followed does not spoil the manifest."""
    document = parse(image(layers=[blob(urls=urls)]))
    assert isinstance(document, m.Manifest)
    assert document.layers[0].urls == expected
