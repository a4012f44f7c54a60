"""What containerd wants of a snapshot, by its labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.format.dialect import TocClaim
from lazyfs.format.digest import digest_of
from lazyfs.format.estargz import ESTARGZ
from lazyfs.snapshots.labels import Claim, ListedLayer, Ordinary, is_extract, read_labels

TARGET = "containerd.io/snapshot.ref"
TOC = "containerd.io/snapshot/stargz/toc.digest"
CRI = "containerd.io/snapshot/cri."
STARGZ = "containerd.io/snapshot/remote/stargz."
CHAIN, LAYER, NEXT, TOP, TOC_DIGEST, MANIFEST = (digest_of(str(number).encode()) for number in range(6))
CLAIM = TocClaim(ESTARGZ, TOC_DIGEST)
REFERENCE = "host:5000/repo:v1"

OF_CRI = {
    TARGET: CHAIN,
    TOC: TOC_DIGEST,
    f"{CRI}image-ref": REFERENCE,
    f"{CRI}layer-digest": LAYER,
    f"{CRI}manifest-digest": MANIFEST,
    f"{CRI}image-layers": f"{LAYER},{NEXT},{TOP}",
}
OF_RPULL = {
    TARGET: CHAIN,
    TOC: TOC_DIGEST,
    f"{STARGZ}reference": REFERENCE,
    f"{STARGZ}digest": LAYER,
    f"{STARGZ}layers": f"{LAYER},{NEXT},{TOP}",
    f"{STARGZ}prefetch": "10485760",
    "containerd.io/snapshot/remote/urls": "",
    "containerd.io/snapshot/remote/urls.0": "",
}


def test_both_families_are_understood() -> None:
    """CRI's labels and ctr-remote's say the same, each with what only it knows."""
    assert read_labels(OF_CRI) == Claim(CHAIN, REFERENCE, LAYER, CLAIM, MANIFEST, (NEXT, TOP), None)
    assert read_labels(OF_RPULL) == Claim(CHAIN, REFERENCE, LAYER, CLAIM, None, (NEXT, TOP), None)
    both = read_labels(OF_CRI | OF_RPULL | {"containerd.io/snapshot/lazyfs.size": "1234"})
    assert both == Claim(CHAIN, REFERENCE, LAYER, CLAIM, MANIFEST, (NEXT, TOP), 1234)


def labelled(*layers: tuple[str, int, str]) -> dict[str, str]:
    return {"containerd.io/snapshot/lazyfs.layers": ",".join(f"{digest[7:]}:{size}:{toc[7:]}" for digest, size, toc in layers)}


def test_our_own_client_lists_the_layers() -> None:
    """All of the image's layers, also those that cannot be lazy; where one makes no sense, none is believed."""
    found = read_labels(OF_CRI | labelled((NEXT, 5, ""), (LAYER, 7, TOC_DIGEST)))
    assert isinstance(found, Claim)
    assert found.layers == (ListedLayer(NEXT, 5, None), ListedLayer(LAYER, 7, CLAIM))
    for broken in (("sha256:short", 7, ""), (LAYER, 0, ""), (LAYER, -1, ""), (LAYER, 1 << 60, ""), (LAYER, 7, "sha256:short")):
        found = read_labels(OF_CRI | labelled((NEXT, 5, ""), broken))
        assert isinstance(found, Claim)
        assert found.layers == ()


def test_without_a_target_nothing_is_wanted() -> None:
    """A container's snapshot may carry all the other labels."""
    labels = {key: value for key, value in OF_CRI.items() if key != TARGET}
    assert read_labels(labels) == read_labels(labels | {TARGET: ""}) == read_labels({}) == Ordinary("")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({TARGET: "x" * 2000}, "not a chain ID"),
        ({TARGET: "a\nb"}, "not a chain ID"),
        ({f"{CRI}image-ref": ""}, "sends no annotations"),
        ({f"{CRI}layer-digest": ""}, "sends no annotations"),
        ({f"{CRI}image-ref": "sha256:" + "0" * 64}, "label for its image"),
        ({f"{CRI}image-ref": "host/re po"}, "label for its image"),
        ({f"{CRI}image-ref": "/repo"}, "label for its image"),
        ({f"{CRI}image-ref": "host/" + "a" * 2000}, "label for its image"),
        ({f"{CRI}layer-digest": "sha512:" + "0" * 128}, "label for its blob"),
        ({f"{CRI}layer-digest": LAYER.upper()}, "label for its blob"),
        ({f"{STARGZ}reference": "evil.example/repo"}, "differ"),
        ({f"{STARGZ}digest": NEXT}, "differ"),
        ({TOC: None}, "not converted"),
        ({TOC: "sha256:short"}, "TOC digest"),
    ],
)
def test_what_cannot_be_lazy_has_a_reason(change: dict[str, str | None], reason: str) -> None:
    """What is missing, broken or contradicted makes an ordinary layer, and says so."""
    labels = {key: value for key, value in (OF_CRI | change).items() if value is not None}
    found = read_labels(labels)
    assert isinstance(found, Ordinary)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("layers", "following"),
    [
        ("", ()),
        (",,", ()),
        (f"{LAYER},{TOP},{TOP},{NEXT},{LAYER}", (TOP, NEXT)),
        (f"{LAYER}, {TOP},sha256:cut,{NEXT}", (NEXT,)),
        (",".join(digest_of(str(number).encode()) for number in range(9, 1000)), 128),
    ],
)
def test_hints_never_refuse(layers: str, following: tuple[str, ...] | int) -> None:
    """Lists that are cut, repeat or go on for ever, sizes that are none: what makes sense of them is taken."""
    labels = OF_CRI | {f"{CRI}image-layers": layers, f"{CRI}manifest-digest": "v1"}
    found = read_labels(labels | {"containerd.io/snapshot/lazyfs.size": "9" * 15})
    assert isinstance(found, Claim)
    assert (found.following if isinstance(following, tuple) else len(found.following)) == following
    assert (found.manifest_digest, found.size) == (None, None)


@pytest.mark.parametrize("number", ["²", "１", "1 ", "1e3", "0x1", "1" * 5000])
def test_numbers_are_plain(number: str) -> None:
    """Digits that only Unicode knows, blanks, and numbers of any length are no sizes."""
    found = read_labels(OF_RPULL | {"containerd.io/snapshot/lazyfs.size": number})
    assert isinstance(found, Claim) and found.size is None


@given(st.dictionaries(st.sampled_from([*OF_CRI, *OF_RPULL]), st.text(max_size=80) | st.sampled_from([LAYER, REFERENCE])))
def test_any_labels_are_answered(labels: dict[str, str]) -> None:
    """Whatever the values, the answer is one of the two, and a claim only with a target."""
    found = read_labels(labels)
    assert isinstance(found, Ordinary) or labels[TARGET]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("default/12/extract-123456-abcd sha256:00", True),
        ("extract-1 sha256:00", True),
        ("k8s.io/3/container", False),
        ("default/1/my-extract-1", False),
        ("default/extract-1/container", False),
        ("", False),
    ],
)
def test_keys_of_unpacking(key: str, expected: bool) -> None:
    """Only the last part of a key says whether containerd unpacks into it."""
    assert is_extract(key) is expected
