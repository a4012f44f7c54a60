"""Objects under both names: what objects/ has, arrived/ has too, and `publish` reports it correctly."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from lazyfs.errors import StoreFull
from lazyfs.store.check import check
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, flip, keep_all, noise, overwrite, read_all, under_way

SINGLE = [noise(5000, 1)]
SEVERAL = [noise(70_000, 2), noise(300, 3)]


def twins(directory: Path, made: Content) -> bool:
    """Whether both names are one file."""
    return os.path.samefile(directory / "objects" / made.name, directory / "arrived" / made.name)


@pytest.mark.parametrize("pieces", [SINGLE, SEVERAL], ids=["one chunk", "several"])
def test_an_object_has_a_twin(store: Store, directory: Path, pieces: list[bytes]) -> None:
    """The last chunk publishes it, under both names, as one file."""
    made = content(*pieces)
    for index, piece in enumerate(pieces):
        assert not store.publish(made)
        assert os.listdir(directory / "arrived") == []
        store.keep(made, index, piece)
    assert store.publish(made)
    assert twins(directory, made)
    assert (directory / "arrived" / made.name).stat().st_nlink == 2


@pytest.mark.parametrize("pieces", [SINGLE, SEVERAL], ids=["one chunk", "several"])
def test_a_missing_twin_is_made(store: Store, directory: Path, pieces: list[bytes]) -> None:
    """One that is another file is replaced. A crash may leave either."""
    made = keep_all(store, pieces)
    (directory / "arrived" / made.name).unlink()
    assert store.publish(made)
    assert twins(directory, made)
    (directory / "arrived" / made.name).unlink()
    (directory / "arrived" / made.name).write_bytes(b"")
    assert store.publish(made)
    assert twins(directory, made)
    assert under_way(store) == []


def test_an_object_removed_by_hand_is_fetched_again(store: Store, directory: Path, expect_log: LogWatch) -> None:
    """Its rows are dropped, at once with those of all others that were removed with it. Its twin does not outlive it."""
    many = [keep_all(store, [noise(100, seed)]) for seed in range(20)] + [keep_all(store, SEVERAL)]
    for made in many[1:]:
        (directory / "objects" / made.name).unlink()
    expect_log("dropped 20 objects from the index")
    assert not store.publish(many[-1])
    assert [bool(missing) for missing in store.missing_many(many)] == [False] + [True] * 20
    assert os.listdir(directory / "arrived") == [many[0].name]
    keep_all(store, SEVERAL)
    assert store.publish(many[-1])
    assert twins(directory, many[-1])


def test_publish_completes_a_partial_file(store: Store, directory: Path) -> None:
    """A partial file with all chunks becomes an object: this makes up for a failed rename."""
    made = keep_all(store, SEVERAL)
    (directory / "arrived" / made.name).unlink()
    os.rename(directory / "objects" / made.name, directory / "partial" / made.name)
    assert store.publish(made)
    assert twins(directory, made)
    assert os.listdir(directory / "partial") == []


def test_a_claimed_size_is_not_published(store: Store) -> None:
    """A content that gives a known digest another size has no object: overlayfs would show its size with other bytes."""
    made = keep_all(store, SINGLE)
    assert not store.publish(msgspec.structs.replace(made, size=4999))
    assert store.publish(made)


@pytest.mark.parametrize("pieces", [SINGLE, SEVERAL], ids=["one chunk", "several"])
def test_a_damaged_object_loses_both_names(store: Store, directory: Path, pieces: list[bytes], expect_log: LogWatch) -> None:
    """Damaged bytes are shown under neither name. What is fetched again has both."""
    made = keep_all(store, pieces)
    flip(directory / "objects" / made.name)
    expect_log("dropped (a )?damaged")
    assert None in read_all(store, made)
    assert os.listdir(directory / "objects") == os.listdir(directory / "arrived") == []
    assert not store.publish(made)
    keep_all(store, pieces)
    assert store.publish(made)
    assert twins(directory, made)


def test_an_object_kept_twice_stays(store: Store, directory: Path) -> None:
    """Its file may be on disk already, which a new one would not be. A wrong one is replaced under both names."""
    made = keep_all(store, SINGLE)
    inode = (directory / "objects" / made.name).stat().st_ino
    keep_all(store, SINGLE)
    assert (directory / "objects" / made.name).stat().st_ino == inode
    overwrite(directory / "objects" / made.name, 0, b"damage")
    keep_all(store, SINGLE)
    assert (directory / "objects" / made.name).read_bytes() == SINGLE[0]
    assert twins(directory, made)
    assert under_way(store) == []


def test_a_twin_without_its_object_is_replaced(store: Store, directory: Path) -> None:
    """A crash between the two names leaves only a twin, which is not trusted."""
    made = content(*SINGLE)
    (directory / "arrived" / made.name).write_bytes(b"")
    assert not store.publish(made)
    keep_all(store, SINGLE)
    assert store.publish(made)
    assert twins(directory, made)


def test_no_room_for_a_name(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused rename leaves neither name."""
    made = content(*SINGLE)

    def refuse(*_: str) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(StoreFull):
            store.keep(made, 0, SINGLE[0])
    assert os.listdir(directory / "objects") == os.listdir(directory / "arrived") == []
    assert under_way(store) == []


def test_a_file_system_without_hard_links(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store works as usual. Nothing is published, because no native mount could find it."""

    def refuse(*_: str) -> NoReturn:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for pieces in (SINGLE, SEVERAL):
        made = keep_all(store, pieces)
        assert read_all(store, made) == pieces
        assert not store.publish(made)
    assert os.listdir(directory / "arrived") == []


def test_twins_alone_are_leftovers(store: Store, directory: Path) -> None:
    """A check removes them, and counts what that frees. A second name of one file frees nothing."""
    keep_all(store, SINGLE)
    (directory / "arrived" / content(b"lost").name).write_bytes(b"lost")
    report = check(store, lambda done, total: None)
    assert (report.leftovers, report.leftover_bytes) == (1, 4096)
    assert store.publish(content(*SINGLE))
