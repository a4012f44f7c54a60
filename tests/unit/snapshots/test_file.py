"""The file of snapshots: what is refused, what a crash, a bad disk and a full one leave, and what an earlier process has done."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lazyfs.errors import SnapshotExists, StoreFull, StoreUnusable
from lazyfs.format.digest import Digest
from lazyfs.snapshots.database import FILE_NAME, Snapshots
from tests.unit.snapshots.rows import a_layer, keys


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    """A damaged file, another program's, a newer format, a missing folder, a closed database: in words."""
    Snapshots(tmp_path).close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreUnusable, match="newer"):
        Snapshots(tmp_path)
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA application_id = 7")
    database.close()
    with pytest.raises(StoreUnusable, match="does not contain snapshots of lazyfs"):
        Snapshots(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"no database at all, but long enough to be read as a header of one" * 100)
    with pytest.raises(StoreUnusable, match=r"damaged.*Remove the containers"):
        Snapshots(tmp_path)
    with pytest.raises(StoreUnusable, match="cannot be created: No such file"):
        Snapshots(tmp_path / "none")


def test_damage_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    """Wherever it is: what nobody reads for a while, as an index, would be missed in the middle of a pull."""
    with Snapshots(tmp_path) as snapshots:
        for number in range(100):
            snapshots.create(str(number), "", "active", {"l": "x" * 500})
    whole = (tmp_path / FILE_NAME).read_bytes()
    for page in range(1, len(whole) // 4096):
        (tmp_path / FILE_NAME).write_bytes(whole[: page * 4096] + b"\xff" * 4096 + whole[(page + 1) * 4096 :])
        with pytest.raises(StoreUnusable, match="damaged"):
            Snapshots(tmp_path)


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    """A crash between creating the file and its tables costs nothing; closing twice is not an error, a call afterwards is one."""
    (tmp_path / FILE_NAME).touch()
    snapshots = Snapshots(tmp_path)
    assert snapshots.ids() == frozenset()
    snapshots.close()
    snapshots.close()
    with pytest.raises(StoreUnusable, match="cannot be used"):
        snapshots.ids()


def test_a_log_cut_short_loses_only_the_last(tmp_path: Path) -> None:
    """Wherever a power failure cuts what sqlite was writing, the rows are those of a moment that was, and more can be made."""
    (tmp_path / "whole").mkdir()
    with Snapshots(tmp_path / "whole") as snapshots:
        for number in range(5):
            snapshots.create(str(number), "", "active", {"l": "x" * 3000})
        files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    log = files.pop(f"{FILE_NAME}-wal")
    seen = set()
    for length in (*range(0, len(log), len(log) // 40), len(log)):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(files[FILE_NAME])
        (folder / f"{FILE_NAME}-wal").write_bytes(log[:length])
        with Snapshots(folder) as snapshots:
            found = sorted(keys(snapshots))
            assert found == [str(number) for number in range(len(found))]
            seen.add(len(found))
            assert snapshots.create("new", "", "active", {}).id == len(found) + 1
    assert seen == set(range(6))


def test_rot_is_reported(snapshots: Snapshots) -> None:
    """A row that cannot be understood is damage, not a defect of ours."""
    snapshots.create("a", "", "active", {})
    snapshots._db.execute("UPDATE snapshot SET labels = x'00'")
    with pytest.raises(StoreUnusable, match="damaged"):
        snapshots.stat("a")
    with pytest.raises(StoreUnusable, match="damaged"):
        next(snapshots.pages())


def test_a_full_disk_is_reported(snapshots: Snapshots) -> None:
    """What cannot be written is refused in words, is not half there, and what was written before stands."""
    made = snapshots.commit_lazy("lazy", "", {}, a_layer())
    snapshots._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreFull, match="Free space"):
        snapshots.add_objects(Digest(a_layer().toc_digest), [str(number) * 40 for number in range(1000)])
    assert snapshots.without_objects() == (made,)
    assert snapshots.first_objects("lazy") == []


def test_what_another_session_has_done_is_done(tmp_path: Path) -> None:
    """Its Prepare and Commit may be repeated, if they are the same; those of the own session not."""
    with Snapshots(tmp_path, "first") as first:
        base = first.create("base-key", "", "active", {})
        assert first.commit("base-key", "base", {}, 1, 2).id == base.id
        child = first.create("child", "base", "active", {})
        with pytest.raises(SnapshotExists):
            first.create("child", "base", "active", {})
        with pytest.raises(SnapshotExists):
            first.commit("base-key", "base", {}, 1, 2)
    with Snapshots(tmp_path, "second") as second:
        assert second.create("child", "base", "active", {}) == child
        assert second.commit("base-key", "base", {}, 0, 0).size == 2
        for key, parent, kind in (("child", "", "active"), ("child", "base", "view"), ("base", "", "active")):
            with pytest.raises(SnapshotExists):
                second.create(key, parent, kind, {})  # type: ignore[arg-type]
        with pytest.raises(SnapshotExists):
            second.commit("child", "base", {}, 0, 0)
