"""Open files: few at a time, closed when nobody reads, and checked again if they are replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.store import open_files as module
from lazyfs.store.directory import Directory
from lazyfs.store.files import Files
from lazyfs.store.open_files import OpenFile, OpenFiles


@pytest.fixture
def files(directory: Path) -> Iterator[Files]:
    hold = Directory(directory)
    yield Files(hold)
    hold.close()


def opened(open_files: OpenFiles, name: str) -> OpenFile:
    file = open_files.open(name)
    assert file is not None
    return file


def is_open(file: OpenFile) -> bool:
    return os.path.exists(f"/proc/self/fd/{file.fd}")


def test_no_more_than_the_limit_stays_open(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one read longest ago is closed first, but not while it is being read."""
    monkeypatch.setattr(module, "LIMIT", 2)
    for name in "abc":
        files.put_whole(name, name.encode())
    open_files = OpenFiles(files)
    reading, other = opened(open_files, "a"), opened(open_files, "b")
    open_files.release(other)
    third = opened(open_files, "c")
    assert open_files.take("a") is None
    assert os.pread(reading.fd, 1, 0) == b"a"
    open_files.release(reading)
    assert not is_open(reading)
    assert is_open(other)
    open_files.release(third)
    open_files.close()
    assert not is_open(other)


def test_checks_are_remembered_for_the_same_file(files: Files) -> None:
    """After closing and reopening, checked chunks stay checked. A new file in its place is checked again."""
    files.put_whole("a", b"first")
    open_files = OpenFiles(files)
    file = opened(open_files, "a")
    for position in (0, 9, 4000):
        open_files.mark_checked(file, position)
    open_files.release(file)
    open_files.close()
    file = opened(open_files, "a")
    assert [position for position in range(5000) if file.is_checked(position)] == [0, 9, 4000]
    open_files.release(file)
    open_files.close()
    files.put_whole("a", b"other")
    file = opened(open_files, "a")
    assert not any(file.is_checked(position) for position in range(5000))
    open_files.release(file)
    open_files.close()


def test_a_forgotten_file_is_opened_again(files: Files) -> None:
    """A reader continues with the old one. Its checks are forgotten with it."""
    files.put_whole("a", b"first")
    open_files = OpenFiles(files)
    old = opened(open_files, "a")
    open_files.mark_checked(old, 0)
    open_files.forget("a")
    new = opened(open_files, "a")
    assert new is not old
    assert (new.is_checked(0), is_open(old)) == (False, True)
    open_files.release(old)
    assert not is_open(old)
    open_files.release(new)
    open_files.close()


def test_a_missing_file_is_not_opened(files: Files) -> None:
    """No file, no descriptor, no error."""
    assert OpenFiles(files).open("a") is None
