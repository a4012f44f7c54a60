"""Layers that are not what the image says: refused in their own words, and nothing of them published or described."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
import zstandard

from lazyfs.errors import DigestMismatch, InvalidInput, InvalidTar, LazyfsError, StoreFull, Unreachable
from lazyfs.format.digest import digest_of
from lazyfs.format.entry import Entry
from lazyfs.format.manifest import OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from lazyfs.layertar import spool
from lazyfs.store.content import content_of
from lazyfs.store.store import Store
from tests import tars
from tests.conftest import LogWatch
from tests.unit.converter.making import tar_of
from tests.unit.converter.places import MemoryRepository
from tests.unit.eager.loading import APP, BASE, here, kept, load


def gz(tar: bytes) -> tuple[bytes, str, str]:
    return gzip.compress(tar), OCI_LAYER_GZIP, digest_of(tar)


TAR = tar_of(BASE)
BAD: dict[str, tuple[tuple[bytes, str, str], type[LazyfsError], str]] = {
    "diff ID": ((gzip.compress(TAR), OCI_LAYER_GZIP, digest_of(b"")), DigestMismatch, "diff ID is"),
    "no gzip": ((b"<html>" * 200, OCI_LAYER_GZIP, digest_of(b"<html>" * 200)), InvalidTar, "is not a header"),
    "cut short": ((gzip.compress(TAR)[:-100], OCI_LAYER_GZIP, digest_of(TAR)), InvalidInput, "ends inside a gzip member"),
    "bomb": (
        (zstandard.compress(bytes(64 << 20)), OCI_LAYER_ZSTD, digest_of(bytes(64 << 20))),
        InvalidInput,
        "decompression bomb",
    ),
    "tar cut short": (gz(TAR[:5000]), InvalidTar, "the tar ends"),
    "not a tar": (gz(b"not a tar at all" * 100), InvalidTar, "is not a header"),
    "link to nothing": (gz(tars.header(b"it", b"1", link=b"gone") + tars.END), InvalidTar, "not an earlier file"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_not_what_the_image_says_is_refused(name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own words; nothing is published or described."""
    monkeypatch.setattr(spool, "_MIN_LIMIT", 16 << 20)
    (data, kind, diff_id), error, message = BAD[name]
    place = MemoryRepository()
    place.add_manifest([place.add_blob(data, kind)], [diff_id])
    with pytest.raises(error, match=message):
        await load(place, store)
    assert not kept(store)
    assert store.statistics().documents == 2  # manifest and config


async def test_another_blob_than_the_manifests(store: Store, expect_log: LogWatch) -> None:
    """A tar that is sound in itself, from a registry that lies about whose it is."""
    place = MemoryRepository()
    place.add_image(TAR)
    (described,) = place.body()["layers"]
    place.blobs[described["digest"]] = gzip.compress(tar_of(APP)).ljust(described["size"], b"\0")
    expect_log("hashes to .*fetching it once more")
    with pytest.raises(DigestMismatch, match="hashes to"):
        await load(place, store)
    assert not kept(store)


async def test_bad_upper_layer_publishes_nothing_of_its_own(store: Store) -> None:
    """The lower one may be described, and is then not fetched again with another upper one."""
    place = MemoryRepository()
    place.add_image(TAR, tar_of([(Entry(b"usr/lib/large/x", "reg", size=1), b"x")]))
    with pytest.raises(InvalidTar, match="'usr/lib/large' should be a directory"):
        await load(place, store)
    place.add_image(TAR)
    (base,) = await load(place, store)
    assert kept(store) == {content_of(entry.chunks).name for entry in base.entries if entry.chunks}


async def test_store_without_room_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that cannot be kept cannot be mounted either."""

    def refuse(*_: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(store, "keep", refuse)
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    with pytest.raises(StoreFull, match="no room"):
        await load(place, store)
    monkeypatch.undo()
    (layer,) = await load(place, store)
    assert here(store, (layer,))


async def test_source_that_breaks_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is raised unchanged, and nothing is left."""
    place = MemoryRepository()
    place.add_image(tar_of(BASE))
    monkeypatch.setattr(place, "open_range", lambda *_, **__: broken())
    with pytest.raises(Unreachable, match="gone"):
        await load(place, store)
    assert not kept(store)


def broken() -> Any:
    raise Unreachable("gone")
