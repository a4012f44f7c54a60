"""Generations, and what the first process after a boot does about bytes that were not on disk when the power failed."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from lazyfs.errors import StoreUnusable
from lazyfs.store import durability
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import DAMAGES, content, keep_all, noise, overwrite, read_all

SINGLE = [noise(5000, 1)]
SEVERAL = [noise(70_000, 2), noise(300, 3)]


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on, the machine has been rebooted."""
    return lambda name: monkeypatch.setenv("LAZYFS_BOOT_ID", name)


def names(directory: Path) -> dict[str, set[str]]:
    return {folder: set(os.listdir(directory / folder)) for folder in ("objects", "arrived", "partial")}


def test_a_generation_ends_with_a_sync(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are pending until the file system was synced after their commit. Rows committed during the sync stay pending."""
    syncs: list[Path] = []

    def sync(path: Path) -> None:
        syncs.append(path)
        keep_all(store, [noise(10, len(syncs))])
        store.index.change()

    monkeypatch.setattr(durability, "sync", sync)
    store.durability.make_durable()
    assert (syncs, store.durability.is_pending()) == ([], False)
    keep_all(store, SINGLE)
    store.durability.make_durable()
    assert (syncs, store.durability.is_pending()) == ([store.directory.path], True)
    monkeypatch.setattr(durability, "sync", syncs.append)
    store.durability.make_durable()
    assert (len(syncs), store.durability.is_pending()) == (2, False)


def test_one_process_syncs_for_all(store: Store, directory: Path) -> None:
    """What another process has committed becomes durable too."""
    with Store.open(directory) as other:
        keep_all(other, SINGLE)
        other.index.change()
        assert store.durability.is_pending()
        store.durability.make_durable()
        assert not other.durability.is_pending()


def test_a_disk_that_fails_makes_nothing_durable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write once: a later sync that succeeds proves nothing."""
    keep_all(store, SINGLE)

    def fail(path: Path) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durability, "sync", fail)
        with pytest.raises(StoreUnusable, match="cannot be synced: Input/output error"):
            store.durability.make_durable()
    with pytest.raises(StoreUnusable, match=r"disk of the store .* has failed"):
        store.durability.make_durable()
    assert store.durability.is_pending()


def test_what_is_sound_stays(directory: Path, reboot: Callable[[str], None]) -> None:
    """Nothing that reached the disk is lost, recorded or not. Afterwards it is recorded."""
    with Store.open(directory) as store:
        durable = keep_all(store, SINGLE)
        store.durability.make_durable()
        young, under_way = keep_all(store, SEVERAL), content(noise(100, 4), noise(200, 5))
        store.keep(under_way, 1, noise(200, 5))
    before = names(directory)
    reboot("another")
    with Store.open(directory) as store:
        assert names(directory) == before
        assert (read_all(store, durable), read_all(store, young)) == (SINGLE, SEVERAL)
        assert read_all(store, under_way) == [None, noise(200, 5)]
        assert not store.durability.is_pending()


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("pieces", [SINGLE, SEVERAL], ids=["one chunk", "several"])
def test_what_did_not_reach_the_disk_is_dropped(
    directory: Path, reboot: Callable[[str], None], damage: str, pieces: list[bytes], expect_log: LogWatch
) -> None:
    """Before anyone could mount it: it has neither name, its right chunks stay, and it can be kept again."""
    with Store.open(directory) as store:
        sound, made = keep_all(store, [noise(9)]), keep_all(store, pieces)
        store.keep_note("key", "value")
    DAMAGES[damage](directory / "objects" / made.name)
    reboot("another")
    expect_log("not fully synced when the machine stopped")
    with Store.open(directory) as store:
        assert names(directory)["objects"] == names(directory)["arrived"] == {sound.name}
        assert all(got in (None, piece) for got, piece in zip(read_all(store, made), pieces, strict=True))
        assert None in read_all(store, made)
        assert store.statistics().damaged == 0, "not met by a reader"
        keep_all(store, pieces)
        assert read_all(store, made) == pieces
        assert store.publish(made)


def test_what_is_durable_is_not_read_again(directory: Path, reboot: Callable[[str], None], expect_log: LogWatch) -> None:
    """A start does not read the whole store. Later damage is found when it is read."""
    with Store.open(directory) as store:
        made = keep_all(store, SINGLE)
        store.durability.make_durable()
    overwrite(directory / "objects" / made.name, 0, b"damage")
    reboot("another")
    with Store.open(directory) as store:
        assert names(directory)["objects"] == {made.name}
        expect_log("dropped (a )?damaged")
        assert read_all(store, made) == [None]


def test_once_a_boot(directory: Path, reboot: Callable[[str], None]) -> None:
    """The bytes of a process that dies while the machine runs are in the kernel: nothing is dropped."""
    with Store.open(directory) as store:
        keep_all(store, SINGLE)
    reboot("another")
    Store.open(directory).close()
    stray = content(b"of a process that was killed before it committed the row")
    for folder in ("objects", "arrived"):
        (directory / folder / stray.name).write_bytes(b"")
    Store.open(directory).close()
    assert stray.name in names(directory)["objects"]


def test_files_without_rows_go(directory: Path, reboot: Callable[[str], None], expect_log: LogWatch) -> None:
    """The kernel would serve them unchecked. What is not a file was put there by somebody, and stays."""
    with Store.open(directory) as store:
        made = keep_all(store, SINGLE)
        store.durability.make_durable()
    stray, other = content(b"stray"), content(b"a", b"b")
    for folder in ("objects", "arrived", "partial"):
        (directory / folder / stray.name).write_bytes(b"")
        (directory / folder / "no name").write_bytes(b"")
    (directory / "arrived" / other.name).write_bytes(b"")
    (directory / "partial" / made.name).write_bytes(b"")
    (directory / "objects" / "folder").mkdir()
    reboot("another")
    expect_log("dropped 0 chunks and 8 files")
    with Store.open(directory):
        assert names(directory) == {"objects": {made.name, "folder"}, "arrived": {made.name}, "partial": set()}


def test_a_twin_of_its_own_goes(directory: Path, reboot: Callable[[str], None], expect_log: LogWatch) -> None:
    """Of two files that should be one, the one in objects/ was checked."""
    with Store.open(directory) as store:
        made = keep_all(store, SINGLE)
    (directory / "arrived" / made.name).unlink()
    (directory / "arrived" / made.name).write_bytes(bytes(5000))
    reboot("another")
    expect_log("dropped 0 chunks and 1 files")
    with Store.open(directory) as store:
        assert names(directory)["arrived"] == set()
        assert store.publish(made)
        assert (directory / "arrived" / made.name).read_bytes() == SINGLE[0]


@pytest.mark.parametrize("durable", [True, False])
def test_an_object_that_lost_its_last_row_becomes_partial(directory: Path, reboot: Callable[[str], None], durable: bool) -> None:
    """The rename reached the disk, the commit did not: it is not accepted as a complete object."""
    with Store.open(directory) as store:
        made = keep_all(store, SEVERAL)
        if durable:
            store.durability.make_durable()
        store.index.change(lambda db: db.execute("DELETE FROM chunk WHERE position = 1") and None)
    reboot("another")
    with Store.open(directory) as store:
        assert names(directory) == {"objects": set(), "arrived": set(), "partial": {made.name}}
        assert read_all(store, made) == [SEVERAL[0], None]
        store.keep(made, 1, SEVERAL[1])
        assert store.publish(made)


def test_a_complete_partial_file_is_checked_before_it_becomes_an_object(
    directory: Path, reboot: Callable[[str], None], expect_log: LogWatch
) -> None:
    """All its rows are durable, but not its rename: the file under its first name might be a later one."""
    with Store.open(directory) as store:
        made = keep_all(store, SEVERAL)
        store.durability.make_durable()
    os.rename(directory / "objects" / made.name, directory / "partial" / made.name)
    overwrite(directory / "partial" / made.name, 0, bytes(100))
    reboot("another")
    expect_log("dropped 1 chunks and 1 files")  # the twin
    with Store.open(directory) as store:
        assert names(directory) == {"objects": set(), "arrived": set(), "partial": {made.name}}
        assert read_all(store, made) == [None, SEVERAL[1]]


def test_rows_without_a_file_go(directory: Path, reboot: Callable[[str], None], expect_log: LogWatch) -> None:
    """Both young and durable ones."""
    made: list[Content] = []
    with Store.open(directory) as store:
        made.append(keep_all(store, SINGLE))
        store.durability.make_durable()
        made.append(keep_all(store, SEVERAL))
    for one in made:
        (directory / "objects" / one.name).unlink()
    reboot("another")
    expect_log("dropped 3 chunks and 2 files")
    with Store.open(directory) as store:
        assert store.missing_many(made) == [[0], [0, 1]]
        assert names(directory)["arrived"] == set()


def test_a_dropped_row_does_not_come_back(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """The removal is on disk before the chunk can be kept again: the log of the index contains it, wherever it is cut off
    later."""
    made = keep_all(store, SINGLE)
    store.durability.make_durable()
    synced: list[str] = []
    overwrite(directory / "objects" / made.name, 0, b"damage")
    connection = store.index._database._writer
    assert connection is not None
    connection.set_trace_callback(synced.append)
    expect_log("dropped (a )?damaged")
    assert read_all(store, made) == [None]
    connection.set_trace_callback(None)
    wanted = [line.split("\n")[0] for line in synced if line.startswith(("PRAGMA", "BEGIN", "DELETE", "COMMIT"))]
    assert wanted[0] == "PRAGMA synchronous = FULL"
    assert wanted[2].startswith("DELETE")
    assert wanted[-2:] == ["COMMIT", "PRAGMA synchronous = NORMAL"]


def test_an_index_that_does_not_say_what_is_durable_is_damaged(
    directory: Path, reboot: Callable[[str], None], expect_log: LogWatch
) -> None:
    """Then nothing is trusted."""
    with Store.open(directory) as store:
        made = keep_all(store, SINGLE)
    with sqlite3.connect(directory / "index.sqlite") as db:
        db.execute("UPDATE fact SET value = 'x' WHERE name = 'durable'")
    db.close()
    reboot("another")
    expect_log("durable is damaged.*starting empty")
    with Store.open(directory) as store:
        assert names(directory) == {"objects": set(), "arrived": set(), "partial": set()}
        assert read_all(store, keep_all(store, SINGLE)) == SINGLE
        assert store.publish(made)


def test_a_store_that_cannot_be_settled_is_not_opened(
    directory: Path, reboot: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """What was not checked is not mounted. The next process tries again."""
    with Store.open(directory) as store:
        made = keep_all(store, SINGLE)
    shutil.copy(directory / "objects" / made.name, directory / "objects" / content(b"stray").name)
    reboot("another")

    def refuse(path: str, **_: int) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(StoreUnusable, match="cannot be recovered after a reboot: Read-only"):
            Store.open(directory)
    expect_log("dropped 0 chunks and 1 files")
    with Store.open(directory) as store:
        assert read_all(store, made) == SINGLE
