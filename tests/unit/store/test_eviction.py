"""Eviction: what goes first, what never goes, and that it goes under all its names and rows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lazyfs.format.digest import digest_of
from lazyfs.store import eviction
from lazyfs.store.content import Content
from lazyfs.store.eviction import Freed
from lazyfs.store.in_use import InUse, declare
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, keep_all, noise, read_all

SIZE = 8192
"""Size of each object: two blocks."""
NOTHING = InUse()


def arrive(store: Store, seeds: Sequence[int]) -> list[Content]:
    """Objects in this order, each in its own generation."""
    made = []
    for seed in seeds:
        made.append(keep_all(store, [noise(SIZE, seed)]))
        store.durability.make_durable()
    return made


def remove(
    store: Store,
    wanted: int | None,
    in_use: InUse = NOTHING,
    protected: Callable[[str], bool] = lambda name: False,
    *,
    mounted_too: bool = True,
    older_than: float = 0.0,
) -> Freed:
    """With the defaults of most tests."""
    return store.eviction.remove(wanted, in_use, protected, mounted_too=mounted_too, older_than=older_than)


def here(store: Store, made: Sequence[Content]) -> list[int]:
    """Which of the objects exist: by their rows, and under both names or neither."""
    present = [number for number, missing in enumerate(store.missing_many(made)) if not missing]
    for folder in (store.directory.objects, store.directory.arrived):
        names = set(os.listdir(folder))
        assert [number for number, one in enumerate(made) if one.name in names] == present
    return present


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the objects with cached pages: none, unless the test adds some."""
    names: set[str] = set()
    monkeypatch.setattr(eviction, "_is_cached", lambda path: path.rpartition("/")[2] in names)
    return names


@pytest.mark.usefixtures("cached")
def test_the_oldest_go_first(store: Store) -> None:
    """No more than needed, under both names, with their rows."""
    made = arrive(store, range(6))
    freed = remove(store, 2 * SIZE + 1)
    assert (freed.objects, freed.bytes, freed.held) == (3, 3 * SIZE, 0)
    assert set(freed.names) == {one.name for one in made[:3]}
    assert here(store, made) == [3, 4, 5]
    assert read_all(store, made[0]) == [None]
    assert not store.publish(made[0])
    keep_all(store, [noise(SIZE, 0)])
    assert read_all(store, made[0]) == [noise(SIZE, 0)]


def test_what_is_not_mounted_goes_before_what_is(store: Store, cached: set[str]) -> None:
    """Whatever its age, and even if it is cached."""
    made = arrive(store, range(6))
    cached.update(one.name for one in made[2:])
    in_use = InUse(objects={one.name for one in made[:4]})
    remove(store, 1, in_use)
    assert here(store, made) == [0, 1, 2, 3, 5]
    remove(store, 2 * SIZE, in_use)
    assert here(store, made) == [1, 2, 3]


def test_what_is_in_memory_has_a_second_chance(store: Store, cached: set[str]) -> None:
    """It was read recently: it goes when nothing else is left, again the oldest first."""
    made = arrive(store, range(6))
    cached.update({made[0].name, made[2].name})
    remove(store, 4 * SIZE)
    assert here(store, made) == [0, 2]
    remove(store, 1)
    assert here(store, made) == [2]


@pytest.mark.usefixtures("cached")
def test_an_announced_object_stays(store: Store) -> None:
    """Even if there is nothing else to remove."""
    made = arrive(store, range(4))
    safe = {made[0].name, made[3].name}
    assert remove(store, None, protected=lambda name: name in safe).objects == 2
    assert here(store, made) == [0, 3]


@pytest.mark.usefixtures("cached")
def test_an_object_announced_in_the_middle_stays(store: Store) -> None:
    """Its rows are deleted already, and are restored: a caller that was answered "published" finds it."""
    made = arrive(store, range(3))
    asked: list[str] = []

    def protected(name: str) -> bool:
        asked.append(name)
        return name == made[1].name and asked.count(name) > 1

    assert remove(store, None, protected=protected).objects == 2
    assert here(store, made) == [1]
    assert store.publish(made[1])
    assert read_all(store, made[1]) == [noise(SIZE, 1)]


@pytest.mark.usefixtures("cached")
def test_an_object_created_again_in_the_middle_stays(store: Store) -> None:
    """Its old file was chosen; the new one was not."""
    made = arrive(store, range(2))
    path, row = Path(store.directory.objects + made[0].name), store.index.rows_of(made[0].name)[0]

    def protected(name: str) -> bool:
        if name == made[0].name and not store.index.rows_of(name):
            (path.parent / "new").write_bytes(noise(SIZE, 0))
            (path.parent / "new").rename(path)
            store.index.add(row, 1, b"")
        return False

    remove(store, 1, protected=protected)
    assert here(store, made) == [0, 1]


@pytest.mark.usefixtures("cached")
def test_partial_files(store: Store, directory: Path) -> None:
    """One that was just written is in use; one that nobody continues goes."""
    pieces = [noise(SIZE, 1), noise(SIZE, 2)]
    made = content(*pieces)
    store.keep(made, 0, pieces[0])
    store.index.change()
    assert remove(store, None).objects == 0
    path = directory / "partial" / made.name
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    assert remove(store, None).bytes == SIZE
    assert not path.exists()
    assert store.missing(made, 0, 2) == [0, 1]


@pytest.mark.usefixtures("cached")
def test_what_is_open_counts_until_it_is_closed(store: Store, directory: Path) -> None:
    """The reader continues. The space is reported separately, and as used."""
    made = arrive(store, range(2))
    with (directory / "objects" / made[0].name).open("rb") as reader:
        freed = remove(store, None)
        assert (freed.bytes, freed.held) == (2 * SIZE, SIZE)
        before = store.eviction.usage()
        assert reader.read() == noise(SIZE, 0)
    after = store.eviction.usage()
    assert (before.held, after.held) == (SIZE, 0)
    assert before.used - after.used == SIZE


def test_a_reader_of_the_store_reads_on(store: Store, directory: Path) -> None:
    """A portable mount with the file open loses nothing but the row."""
    with Store.open(directory) as other:
        made = arrive(other, [1])[0]
        assert other.read(made, 0, 0, 10) == noise(SIZE, 1)[:10]
        remove(store, None)
        assert other.read(made, 0, 0, SIZE) == noise(SIZE, 1)
        assert other.missing(made, 0, 1) == [0]


@pytest.mark.usefixtures("cached")
def test_only_what_is_old_enough(store: Store, directory: Path) -> None:
    """By the time of the last write."""
    made = arrive(store, range(3))
    day_ago = time.time() - 86_400
    os.utime(directory / "objects" / made[1].name, (day_ago, day_ago))
    assert remove(store, None, older_than=3600.0).names == (made[1].name,)
    assert here(store, made) == [0, 2]


def test_what_others_have_mounted_is_in_use(store: Store, directory: Path) -> None:
    """A portable mount declares what it needs. When it ends or is killed, it needs nothing."""
    made = arrive(store, range(3))
    with Store.open(directory) as other:
        declare(other.directory, [made[0].name, "sha256-older"], [])
        declare(other.directory, [made[1].name], [])
        remove(store, None, mounted_too=False)
        assert here(store, made) == [1]
    remove(store, None, mounted_too=False)
    assert here(store, made) == []


def test_documents_and_images_go_after_unused_objects(store: Store, directory: Path) -> None:
    """But not those of what is mounted, nor what was just kept."""
    old = time.time() - 3600
    (directory / "erofs").mkdir()
    for data in (b"manifest", b"other"):
        store.keep_document(digest_of(data), data)
    for name in ("1-aa", "1-bb", "1-aa.layer"):
        (directory / "erofs" / name).write_bytes(b"image")
    for path in [*(directory / "documents").iterdir(), *(directory / "erofs").iterdir()]:
        os.utime(path, (old, old))
    fresh = digest_of(b"fresh")
    store.keep_document(fresh, b"fresh")
    objects = arrive(store, range(2))
    in_use = InUse({objects[0].name}, {digest_of(b"manifest")}, {"1-aa"})
    assert remove(store, 1, in_use) == Freed(objects=1, bytes=SIZE, names=(objects[1].name,))
    freed = remove(store, 1, in_use)
    assert (freed.objects, freed.documents) == (0, 1)
    freed = remove(store, None, in_use, mounted_too=False)
    assert (freed.objects, freed.documents) == (0, 1)
    assert store.document(digest_of(b"manifest")) == b"manifest"
    assert store.document(fresh) == b"fresh"
    assert store.document(digest_of(b"other")) is None
    assert sorted(os.listdir(directory / "erofs")) == ["1-aa", "1-aa.layer"]
    assert remove(store, None, in_use).objects == 1


def test_usage_is_what_the_files_take(store: Store, directory: Path) -> None:
    """Within the blocks that directories take."""
    for seed in range(50):
        keep_all(store, [noise(100 + seed * 300, seed)])
    keep_all(store, [noise(70_000, 1), noise(5000, 2)])
    store.keep_document(digest_of(b"{}"), b"{}")
    store.index.change()
    blocks = {path.stat().st_ino: path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file()}
    usage = store.eviction.usage()
    assert usage.held == 0
    assert sum(blocks.values()) <= usage.used <= sum(blocks.values()) + 2 * 4096


def test_the_limit_is_the_stores(store: Store, directory: Path) -> None:
    """Set by one process, effective for all, and kept."""
    assert store.eviction.limit == 0
    with Store.open(directory) as other:
        other.eviction.set_limit(10**9)
    assert store.eviction.limit == store.eviction.usage().limit == 10**9


def test_one_process_evicts(store: Store, directory: Path) -> None:
    """Another process, which does not know what this one has announced, waits for another time."""
    with Store.open(directory) as other:
        with store.directory.claims.evicting() as mine:
            assert mine
            with other.directory.claims.evicting() as theirs:
                assert not theirs
        with other.directory.claims.evicting() as theirs:
            assert theirs


def test_many_objects_in_many_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is met once, however many rows and pages there are."""
    monkeypatch.setattr(eviction, "_PAGE", 3)
    monkeypatch.setattr(eviction, "_BATCH", 4)
    made = [keep_all(store, [noise(50, seed), noise(60, seed), noise(70, seed)]) for seed in range(20)]
    store.index.change()
    assert remove(store, None).objects == 20
    assert here(store, made) == []


def test_what_cannot_be_removed_stays(store: Store, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch) -> None:
    """With its rows: no file is left without a row."""
    made = arrive(store, range(2))
    discard = store.files.discard

    def refuse(path: str) -> None:
        if made[0].name in path:
            raise OSError(1, "Operation not permitted")
        discard(path)

    monkeypatch.setattr(store.files, "discard", refuse)
    expect_log("cannot be removed: .*not permitted")
    assert remove(store, None).objects == 1
    assert here(store, made) == [0]
