"""The directory: its owner, its users, and `clear`, which removes nothing else."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import StoreUnusable
from lazyfs.store.check import clear
from lazyfs.store.store import Store
from tests.unit.store.contents import content, keep_all, noise


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_other_users_have_no_access(directory: Path) -> None:
    """Directories 0700, files 0600, objects 0444, whatever the umask. An existing directory is restricted."""
    directory.mkdir(mode=0o755)
    with Store.open(directory) as store:
        made = keep_all(store, [b"x"])
        store.keep(content(b"a", b"b"), 0, b"a")
        store.index.change()
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.rglob("*")]}
        expected = {path: 0o700 if path.is_dir() else 0o600 for path in modes}
        expected[directory / "objects" / made.name] = expected[directory / "arrived" / made.name] = 0o444
        assert modes == expected


def test_parents_are_made(tmp_path: Path) -> None:
    """--store may name a path that does not exist at all."""
    with Store.open(tmp_path / "a" / "b" / "c"):
        pass


def test_a_directory_with_other_files_is_refused(directory: Path) -> None:
    """Neither opened nor cleared: `clear` of a bare git repository must not remove its objects."""
    (directory / "objects").mkdir(parents=True)
    (directory / "HEAD").write_text("ref: refs/heads/main")
    with pytest.raises(StoreUnusable, match="holds other files and is not a store"):
        Store.open(directory)
    with pytest.raises(StoreUnusable, match="is not a store"):
        clear(directory)
    assert sorted(os.listdir(directory)) == ["HEAD", "objects"]


def test_a_fresh_file_system_is_taken(directory: Path) -> None:
    """ext4 comes with a lost+found, which stays."""
    (directory / "lost+found").mkdir(parents=True)
    with Store.open(directory) as store:
        keep_all(store, [b"x"])
    clear(directory)
    assert (directory / "lost+found").is_dir()


@pytest.mark.root
def test_another_users_directory_is_refused(directory: Path) -> None:
    """The owner of the index controls which bytes are trusted."""
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    with pytest.raises(StoreUnusable, match="belongs to user id 12345, not 0"):
        Store.open(directory)


def test_a_path_that_is_not_a_directory_is_refused(directory: Path) -> None:
    """A file at that path is an error that names it."""
    directory.write_text("")
    with pytest.raises(StoreUnusable, match=f"{directory} cannot be opened"):
        Store.open(directory)


def test_temporary_folders_of_the_dead_are_removed(directory: Path) -> None:
    """Those of living processes stay, with their files."""
    with Store.open(directory) as store:
        dead, never_locked, file = (directory / "tmp" / name for name in ("1-dead", "2-never-locked", "3-file"))
        dead.mkdir()
        never_locked.mkdir()
        (dead / "lock").touch()
        (dead / "0").write_bytes(b"half a chunk")
        file.touch()
        own = Path(store.directory.new_temporary())
        own.write_bytes(b"under way")
        with Store.open(directory):
            assert own.exists()
            assert not any(path.exists() for path in (dead, never_locked, file))
    assert os.listdir(directory / "tmp") == []


def test_clear_empties(directory: Path) -> None:
    """Everything is removed, and the store can be used again."""
    with Store.open(directory) as store:
        made = keep_all(store, [noise(100)])
        store.keep_note("key", "value")
    (directory / "erofs").mkdir()
    (directory / "erofs" / "1-aa").touch()
    clear(directory)
    assert sorted(path.name for path in directory.rglob("*") if path.is_file()) == ["claims", "users"]
    with Store.open(directory) as store:
        assert store.missing(made, 0, 1) == [0]


def test_clear_leaves_a_store_in_use(store: Store, directory: Path) -> None:
    """The error names the process. Nothing is lost."""
    made = keep_all(store, [noise(100)])
    with pytest.raises(StoreUnusable, match=f"in use by process {os.getpid()}"):
        clear(directory)
    assert store.read(made, 0, 0, 100) == noise(100)


@pytest.mark.root
def test_clear_leaves_a_store_that_something_is_mounted_in(directory: Path) -> None:
    """Native mounts outlive every process, and the layers under them are mounted within the store."""
    with Store.open(directory) as store:
        made = keep_all(store, [noise(100)])
    (directory / "layers").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory / "layers"], check=True)
    try:
        with pytest.raises(StoreUnusable, match=r"in use by the mount at .*/layers"):
            clear(directory)
    finally:
        subprocess.run(["umount", directory / "layers"], check=True)
    assert (directory / "objects" / made.name).exists()


def test_clear_of_nothing(directory: Path) -> None:
    """A store that does not exist is empty already."""
    clear(directory)
    assert not directory.exists()


def test_alone(store: Store, directory: Path) -> None:
    """True exactly if no other process has the store open, and only within the block."""
    with store.directory.alone() as alone:
        assert alone
    with Store.open(directory) as other:
        with store.directory.alone() as alone:
            assert not alone
        with other.directory.alone() as alone:
            assert not alone, "a failed attempt must leave the first one a user"
