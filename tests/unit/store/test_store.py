"""The store's interface, and every order in which a crash can leave files and rows."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lazyfs.errors import StoreUnusable
from lazyfs.store.blocks import BLOCK
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, keep_all, noise, overwrite, read_all

PIECES = [noise(BLOCK + 10, 1), noise(100, 2), noise(BLOCK, 3)]


def objects(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "objects"))


def partial(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "partial"))


@pytest.mark.parametrize("pieces", [PIECES[:1], PIECES], ids=["one chunk", "several"])
def test_what_is_kept_is_read(store: Store, directory: Path, pieces: list[bytes]) -> None:
    """At once in this process, and in the next one. The last chunk creates the object, read-only, as the only copy."""
    made = content(*pieces)
    assert store.missing(made, 0, len(pieces)) == list(range(len(pieces)))
    for index, piece in enumerate(pieces):
        assert store.read(made, index, 0, 1) is None
        store.keep(made, index, piece)
        assert store.read(made, index, 3, 20) == piece[3:23]
        assert store.missing(made, 0, len(pieces)) == list(range(index + 1, len(pieces)))
    assert (objects(directory), partial(directory)) == ([made.name], [])
    assert stat.S_IMODE((directory / "objects" / made.name).stat().st_mode) == 0o444
    store.close()
    with Store.open(directory) as again:
        assert read_all(again, made) == pieces
        assert again.missing_many([made]) == [[]]


def test_chunks_arrive_in_any_order(store: Store, directory: Path) -> None:
    """A partial file has holes. Stored chunks are read, and the others are missing."""
    made = content(*PIECES)
    store.keep(made, 2, PIECES[2])
    assert read_all(store, made) == [None, None, PIECES[2]]
    assert store.missing_many([made, content(b"other")]) == [[0, 1], [0]]
    assert (objects(directory), partial(directory)) == ([], [made.name])
    store.keep(made, 0, memoryview(PIECES[0]))
    store.keep(made, 1, PIECES[1])
    assert read_all(store, made) == PIECES
    assert (objects(directory), partial(directory)) == ([made.name], [])


def test_a_claimed_size_is_not_believed(store: Store) -> None:
    """A TOC that gives a known digest another size gets nothing, and does not affect the file of the right size."""
    made = keep_all(store, [b"0123456789"])
    for size in (5, 15):
        liar = msgspec.structs.replace(made, size=size)
        assert store.missing(liar, 0, 1) == [0]
        assert store.missing_many([liar]) == [[0]]
        assert store.read(liar, 0, 0, 5) is None
        assert not store.copy_local(liar, 0)
    assert read_all(store, made) == [b"0123456789"]
    assert store.read(msgspec.structs.replace(made, size=5), 0, 0, 5) is None, "not even once the file is open and checked"


def test_ranges_outside_a_chunk_are_refused(store: Store) -> None:
    """A caller's mistake does not return a neighbour's bytes."""
    made = keep_all(store, PIECES)
    for start, length in ((-1, 1), (0, 101), (100, 1), (0, -1)):
        with pytest.raises(ValueError):
            store.read(made, 1, start, length)
    with pytest.raises(ValueError):
        store.keep(made, 1, b"short")
    assert store.read(made, 1, 100, 0) == b""


def test_a_chunk_is_copied_from_any_file(store: Store) -> None:
    """From another file, the same one, or a partial one, but only if it is stored."""
    made = content(PIECES[0], PIECES[1], PIECES[0])
    single = content(PIECES[0])
    assert not store.copy_local(single, 0)
    store.keep(made, 0, PIECES[0])
    assert store.copy_local(made, 2)
    assert store.copy_local(single, 0)
    assert not store.copy_local(made, 1)
    assert read_all(store, made) == [PIECES[0], None, PIECES[0]]
    assert read_all(store, single) == [PIECES[0]]
    counted = store.statistics()
    assert (counted.kept, counted.copied, counted.copied_bytes) == (3, 2, 2 * len(PIECES[0]))


def test_damage_is_not_copied(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """A damaged source is dropped and the next one tried, even if the process has checked the source before."""
    first, second = sorted((keep_all(store, [PIECES[0]]), keep_all(store, PIECES[:2])), key=lambda made: made.name)
    store.close()
    expect_log("dropped (a )?damaged")
    with Store.open(directory) as again:
        assert again.read(first, 0, 0, 9) == again.read(second, 0, 0, 9) == PIECES[0][:9]
        overwrite(directory / "objects" / first.name, 0, b"damage")
        target = content(PIECES[0], PIECES[2])
        assert again.copy_local(target, 0)
        assert read_all(again, target) == [PIECES[0], None]
        assert read_all(again, second)[0] == PIECES[0]
        assert again.read(first, 0, 0, 9) is None, "what was checked before is not given out once it is known to be damaged"
        assert again.statistics().damaged == 1


def test_an_object_with_a_damaged_chunk_goes_on_without_it(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """The other chunks stay. The object's file is not written to, because a kernel may be serving it."""
    made = keep_all(store, PIECES)
    path = directory / "objects" / made.name
    overwrite(path, made.offsets[1], b"damage")
    damaged = path.read_bytes()
    expect_log(f"dropped damaged chunk 1 of {made.name}: its bytes")
    with path.open("rb") as served:
        assert read_all(store, made) == [PIECES[0], None, PIECES[2]]
        assert (objects(directory), partial(directory)) == ([], [made.name])
        under_way = (directory / "partial" / made.name).read_bytes()
        assert under_way == PIECES[0] + bytes(len(PIECES[1])) + PIECES[2], "damaged bytes are not carried on"
        store.keep(made, 1, PIECES[1])
        assert served.read() == damaged
    assert read_all(store, made) == PIECES
    assert (objects(directory), partial(directory)) == ([made.name], [])
    assert store.statistics().damaged == 1


def test_a_file_that_is_gone_is_missing(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """Rows without a file, lost in a power failure or removed by hand."""
    made = keep_all(store, [PIECES[0]])
    (directory / "objects" / made.name).unlink()
    expect_log("its file is gone")
    assert read_all(store, made) == [None]
    assert store.missing(made, 0, 1) == [0]
    store.keep(made, 0, PIECES[0])
    assert read_all(store, made) == [PIECES[0]]


def test_an_object_whose_last_rows_were_lost_is_found_again(store: Store, directory: Path) -> None:
    """A crash between rename and commit: the bytes are there, the row is not. Nothing is written twice."""
    made = keep_all(store, PIECES)
    inode = (directory / "objects" / made.name).stat().st_ino
    store.index.change(lambda db: db.execute("DELETE FROM chunk WHERE position = 2") and None)
    assert read_all(store, made) == [*PIECES[:2], None]
    store.keep(made, 2, PIECES[2])
    assert (objects(directory), partial(directory)) == ([made.name], [])
    assert (directory / "objects" / made.name).stat().st_ino == inode
    assert read_all(store, made) == PIECES


def test_an_object_whose_last_rows_and_bytes_were_lost_is_made_again(store: Store, directory: Path) -> None:
    """A power failure: the rename is on disk, but a chunk's bytes and its row are not."""
    made = keep_all(store, PIECES)
    store.index.change(lambda db: db.execute("DELETE FROM chunk WHERE position = 2") and None)
    overwrite(directory / "objects" / made.name, made.offsets[2], bytes(BLOCK))
    assert store.read(made, 2, 0, 1) is None
    store.keep(made, 2, PIECES[2])
    assert read_all(store, made) == PIECES
    assert (objects(directory), partial(directory)) == ([made.name], [])


def test_a_whole_file_that_was_not_renamed_is_renamed_when_opened(store: Store, directory: Path) -> None:
    """A power failure: the rows are on disk, but the rename is not."""
    made = keep_all(store, PIECES)
    store.close()
    os.rename(directory / "objects" / made.name, directory / "partial" / made.name)
    with Store.open(directory) as again:
        assert (objects(directory), partial(directory)) == ([made.name], [])
        assert read_all(again, made) == PIECES


def test_a_leftover_never_replaces_an_object(store: Store, directory: Path) -> None:
    """If both places have a file, the one in objects/ is right, and stays."""
    made = keep_all(store, PIECES)
    store.close()
    (directory / "partial" / made.name).write_bytes(bytes(made.size))
    with Store.open(directory) as again:
        assert (objects(directory), partial(directory)) == ([made.name], [])
        (directory / "partial" / made.name).write_bytes(bytes(made.size))
        assert read_all(again, made) == PIECES


def test_an_object_that_another_process_has_mended_is_read(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """A damaged file is still open in this process, and was replaced by another one: that is not this process's damage."""
    made = keep_all(store, PIECES)
    expect_log("dropped damaged chunk")
    with Store.open(directory) as other:
        assert store.read(made, 0, 0, 9) == PIECES[0][:9]
        overwrite(directory / "objects" / made.name, made.offsets[1], b"damage")
        assert other.read(made, 1, 0, 9) is None
        other.keep(made, 1, PIECES[1])
        assert store.read(made, 1, 0, 9) == PIECES[1][:9]
        assert (store.statistics().damaged, other.statistics().damaged) == (0, 1)


def test_a_file_mended_meanwhile_is_not_dropped(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """Two processes find the same damage. The second one tries to drop it when the first has fetched the chunk again."""
    made = keep_all(store, PIECES)
    expect_log("dropped damaged chunk")
    overwrite(directory / "objects" / made.name, made.offsets[1], b"damage")
    change = store.index.change
    with Store.open(directory) as other:

        def late(work: Callable[[sqlite3.Connection], None] | None = None, *, synced: bool = False, removing: list[str]) -> None:
            if work is not None and other.read(made, 1, 0, 9) is None:
                other.keep(made, 1, PIECES[1])
            change(work, synced=synced, removing=removing)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store.index, "change", late)
            assert store.read(made, 1, 0, 9) == PIECES[1][:9]
        assert read_all(store, made) == read_all(other, made) == PIECES
        assert (objects(directory), partial(directory)) == ([made.name], [])
        assert (store.statistics().damaged, other.statistics().damaged) == (0, 1)


def test_a_claim_outlasts_its_release_until_others_see_the_chunk(store: Store, directory: Path) -> None:
    """A process that gets the claim finds the chunk: it never fetches what was just fetched."""
    made = content(PIECES[0])
    digest = made.digests[0]
    with Store.open(directory) as other:
        assert store.claim(digest)
        assert not other.claim(digest)
        store.keep(made, 0, PIECES[0])
        store.release(digest)
        while not other.claim(digest):
            os.sched_yield()
        assert other.missing(made, 0, 1) == []
        assert not store.claim(digest)
        other.release(digest)
        assert store.claim(digest)


def test_a_commit_frees_only_the_claims_of_what_it_held(store: Store, directory: Path) -> None:
    """A chunk that arrives during the commit is not visible through it."""
    made = content(PIECES[0])
    with Store.open(directory) as other, store.index._database.writing:
        assert store.claim(made.digests[0])
        store.keep(made, 0, PIECES[0])
        store.release(made.digests[0])
        store._release_claims()
        assert not other.claim(made.digests[0])
        store.index.change()
        assert other.claim(made.digests[0])


def test_claiming_again_takes_a_release_back(store: Store, directory: Path) -> None:
    """A release that waits for a commit does not release a new claim of the same process."""
    made = content(PIECES[0])
    digest = made.digests[0]
    with Store.open(directory) as other:
        assert store.claim(digest)
        store.keep(made, 0, PIECES[0])
        store.release(digest)
        assert store.claim(digest)
        store.index.change()
        assert not other.claim(digest)


def test_a_closed_store_says_so(directory: Path) -> None:
    """A late thread gets an error, and does no damage."""
    store = Store.open(directory)
    made = keep_all(store, [PIECES[0]])
    store.close()
    store.close()
    for call in (lambda: store.read(made, 0, 0, 1), lambda: store.missing(made, 0, 1), lambda: store.copy_local(made, 0)):
        with pytest.raises(StoreUnusable, match="is closed"):
            call()
    with Store.open(directory) as again:
        assert read_all(again, made) == [PIECES[0]]


def test_statistics_count_what_is_on_disk(store: Store) -> None:
    """Complete files by size, partial files by disk space, documents."""
    keep_all(store, [PIECES[0]])
    made = content(*PIECES)
    store.keep(made, 1, PIECES[1])
    counted = store.statistics()
    assert (counted.objects, counted.object_bytes) == (1, len(PIECES[0]))
    assert counted.partial == 1
    assert 0 < counted.partial_bytes < made.size
    assert (counted.documents, counted.damaged, counted.kept_bytes) == (0, 0, len(PIECES[0]) + len(PIECES[1]))
