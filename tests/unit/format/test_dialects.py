"""Which dialect a layer is of, and that what earlier versions wrote is eStargz's."""

from __future__ import annotations

import re

import msgspec
import pytest

from lazyfs.errors import NotLazy, StoreUnusable
from lazyfs.format import dialects
from lazyfs.format.dialect import TocClaim
from lazyfs.format.digest import digest_of
from lazyfs.format.estargz import ESTARGZ, TOC_DIGEST
from lazyfs.format.manifest import OCI_LAYER_GZIP
from lazyfs.snapshots.snapshot import LazyLayer
from tests.dialect.front import ANNOTATION, FRONT

ONE, OTHER = digest_of(b"one"), digest_of(b"other")


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second dialect is registered, before eStargz."""
    monkeypatch.setattr(dialects, "DIALECTS", (FRONT, *dialects.DIALECTS))


@pytest.mark.usefixtures("front")
def test_names_fit_into_a_label() -> None:
    """A name stands between the colons and commas of a label, and is unique."""
    names = [dialect.name for dialect in dialects.DIALECTS]
    assert len(set(names)) == len(names) == 2
    assert all(re.fullmatch("[A-Za-z0-9-]+", name) for name in names)
    assert [dialects.dialect_named(name).name for name in names] == names


@pytest.mark.usefixtures("front")
def test_annotations_decide() -> None:
    """The first dialect all of whose annotations are there; its digest is taken from the first of them."""
    assert dialects.claim_of({TOC_DIGEST: ONE}, "it") == TocClaim(ESTARGZ, ONE)
    assert dialects.claim_of({ANNOTATION: OTHER, TOC_DIGEST: ONE}, "it") == TocClaim(FRONT, OTHER)
    assert dialects.claim_of(TocClaim(FRONT, ONE).annotations, "it") == TocClaim(FRONT, ONE)
    assert dialects.dialect_of({"other": ONE}) is None
    with pytest.raises(NotLazy, match=f"it has no annotation {ANNOTATION} or {TOC_DIGEST}"):
        dialects.claim_of({"other": ONE}, "it")
    with pytest.raises(NotLazy, match=f"it has the annotation {ANNOTATION} 'x', which is not a sha256 digest"):
        dialects.claim_of({ANNOTATION: "x", TOC_DIGEST: ONE}, "it")


def test_two_annotations_mark_one_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with stargz-snapshotter's zstd:chunked, which has eStargz's annotation and one more."""
    both = FRONT._replace(annotations=(TOC_DIGEST, ANNOTATION))
    monkeypatch.setattr(dialects, "DIALECTS", (both, ESTARGZ))
    assert dialects.claim_of({TOC_DIGEST: ONE, ANNOTATION: "anything"}, "it") == TocClaim(both, ONE)
    assert dialects.claim_of({TOC_DIGEST: ONE}, "it") == TocClaim(ESTARGZ, ONE)
    assert dialects.claim_of(TocClaim(both, ONE).annotations, "it") == TocClaim(both, ONE)
    # A registry's manifest says more precisely which dialect it is than containerd's labels do.
    merged = dialects.with_claim({TOC_DIGEST: OTHER, ANNOTATION: "anything"}, TocClaim(ESTARGZ, ONE))
    assert dialects.claim_of(merged, "it") == TocClaim(both, ONE)


@pytest.mark.usefixtures("front")
def test_a_registry_cannot_name_another_toc() -> None:
    """Whatever its manifest says of a layer: what containerd's own manifest says, by its labels, is believed."""
    for manifest_annotations in ({}, {ANNOTATION: OTHER}, {TOC_DIGEST: OTHER}, {ANNOTATION: OTHER, TOC_DIGEST: OTHER}):
        for dialect in (ESTARGZ, FRONT):
            claim = TocClaim(dialect, ONE)
            assert dialects.claim_of(dialects.with_claim(manifest_annotations, claim), "it") == claim


def test_a_row_without_a_dialect_is_estargz() -> None:
    """An upgraded daemon reads the rows of the earlier one, and of eStargz writes the same."""
    earlier = {
        "reference": "docker://host/repo",
        "digest": ONE,
        "size": 7,
        "media_type": OCI_LAYER_GZIP,
        "toc_digest": OTHER,
        "toc_offset": 3,
    }
    row = msgspec.json.encode(earlier)
    lazy = msgspec.json.decode(row, type=LazyLayer)
    assert dialects.dialect_named(lazy.dialect) is ESTARGZ
    assert msgspec.json.encode(lazy) == row
    other = msgspec.structs.replace(lazy, dialect=FRONT.name)
    assert msgspec.json.decode(msgspec.json.encode(other), type=LazyLayer) == other


def test_a_dialect_of_a_later_version() -> None:
    """A row may name one after a downgrade."""
    with pytest.raises(StoreUnusable, match="is of the dialect 'front', which this lazyfs does not know"):
        dialects.dialect_named(FRONT.name)


def test_one_document_read_in_two_dialects_has_two_names() -> None:
    """Else an image could put its reading of a TOC in the place of another image's. eStargz's names are those of earlier versions."""
    assert dialects.toc_key(ONE, ESTARGZ.name) == ONE[7:]
    other = dialects.toc_key(ONE, FRONT.name)
    assert re.fullmatch("[0-9a-f]{64}", other)
    assert other != ONE[7:] != dialects.toc_key(OTHER, FRONT.name)
