"""Partial blobs: counted, evicted first, kept after a crash but not forever, and never trusted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lazyfs.format.digest import Digest, digest_of, to_raw
from lazyfs.store import durability
from lazyfs.store.check import check
from lazyfs.store.claims import Claims
from lazyfs.store.directory import clear
from lazyfs.store.in_use import InUse
from lazyfs.store.partial_blobs import is_partial_blob
from lazyfs.store.store import Store
from tests.unit.store.contents import keep_all, noise

SIZE = 8192
BLOB = digest_of(b"a blob")
OTHER = digest_of(b"another")


def begin(store: Store, digest: Digest = BLOB, size: int = SIZE, age: float = 0.0) -> Path:
    """Keep the first `size` bytes of a blob."""
    with store.partial_blobs.open(digest, 1 << 20) as part:
        part.append(memoryview(noise(size, 1)))
    path = store.directory.path / "partial" / f"blob-{digest[7:]}"
    os.utime(path, (time.time() - age,) * 2)
    return path


@contextmanager
def fetched(store: Store, digest: Digest = BLOB) -> Iterator[None]:
    """The layer lock is held."""
    with closing(Claims(store.directory.path / "claims")) as claims:
        assert claims.claim(to_raw(digest))
        yield


def remove(store: Store, wanted: int | None, older_than: float = 0.0) -> int:
    """Evict. Returns how many blobs were removed."""
    return store.eviction.remove(wanted, InUse(), lambda _: False, mounted_too=True, older_than=older_than).parts


def test_a_partial_blob_is_continued(store: Store) -> None:
    """By the next attempt."""
    begin(store)
    with store.partial_blobs.open(BLOB, 1 << 20) as part:
        assert part.size == SIZE
        assert part.read(0, SIZE + 1) == noise(SIZE, 1)
        part.append(memoryview(b"more"))
        assert (part.size, part.read(SIZE, 10)) == (SIZE + 4, b"more")


def test_a_blob_never_exceeds_its_size(store: Store) -> None:
    """Whatever a source sends. A stored blob that is larger belongs to another size."""
    with store.partial_blobs.open(BLOB, SIZE) as part:
        part.append(memoryview(bytes(SIZE)))
        with pytest.raises(ValueError, match="exceed"):
            part.append(memoryview(b"x"))
    with store.partial_blobs.open(BLOB, SIZE - 1) as part:
        assert part.size == 0


def test_it_counts_as_used(store: Store) -> None:
    """By its disk space."""
    before = store.eviction.usage().used
    begin(store)
    assert store.eviction.usage().used - before >= SIZE


def test_it_is_the_first_to_make_room(store: Store) -> None:
    """Before any object, but not while it is being fetched."""
    made = keep_all(store, [noise(SIZE, 0)])
    one, other = begin(store, age=20), begin(store, OTHER, age=10)
    with fetched(store):
        assert remove(store, 1) == 1
    assert (one.exists(), other.exists()) == (True, False)
    assert remove(store, 1) == 1
    assert not one.exists()
    assert not store.missing(made, 0, 1)


def test_a_limit_of_the_store_is_kept_by_removing_it(store: Store) -> None:
    """It counts for --store-size, and goes before any object. While its layer is being fetched, objects go instead."""
    made = keep_all(store, [noise(SIZE, 0)])
    part = begin(store)
    store.eviction.set_limit(store.eviction.usage().used - 1)
    usage = store.eviction.usage()
    with fetched(store):
        assert store.eviction.remove(usage.used - usage.limit, InUse(), lambda _: False, mounted_too=True).parts == 0
        assert part.exists() and store.missing(made, 0, 1)
    assert remove(store, 1) == 1
    assert not part.exists()


def test_pruning_takes_it(store: Store) -> None:
    """Like everything unused, by its age if one is given."""
    path = begin(store, age=100)
    assert remove(store, None, older_than=200) == 0
    assert remove(store, None, older_than=50) == 1
    assert not path.exists()


def test_after_a_day_it_goes(store: Store) -> None:
    """With the next scrub, or the next process, unless its layer is locked."""
    young, old = begin(store, OTHER, age=86_000), begin(store, age=90_000)
    with fetched(store):
        assert store.eviction.remove_strays(lambda _: False) == 0
    assert store.eviction.remove_strays(lambda _: False) == 1
    assert (young.exists(), old.exists()) == (True, False)
    begin(store, age=90_000)
    with Store.open(store.directory.path):
        assert (young.exists(), old.exists()) == (True, False)


def test_power_cut_and_check_leave_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no row and needs none: it is hashed before it is used."""
    with Store.open(directory) as store:
        path = begin(store)
        report = check(store, lambda _done, _total: None)
        assert (report.leftovers, report.in_use) == (0, False)
    monkeypatch.setattr(durability, "boot_id", lambda: "another boot")
    with Store.open(directory) as store:
        assert path.stat().st_size == SIZE
        assert store.statistics().partial_bytes >= SIZE
    clear(directory)
    assert not path.exists()


@pytest.mark.parametrize("name", ["blob-", "blob-" + "g" * 64, "sha256-" + "0" * 64 + "-1", "blob-" + "0" * 64 + "x"])
def test_other_names_are_none(name: str) -> None:
    """Least of all the name of an object."""
    assert not is_partial_blob(name)
    assert is_partial_blob("blob-" + "0" * 64)
