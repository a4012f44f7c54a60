"""A disk whose power can be cut: an ext4 file system in a file. A copy of that file is the disk at one moment.

Bytes that were not synced are not on it, and names only once the journal has committed: `commit_names` makes it do so, as any fsync on
the file system would.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.kernel.mountinfo import mounted_at
from tests.commands import run
from tests.lazyfsd import moments


def make_disk(file: Path, size: int) -> None:
    """Make a sparse file of `size` bytes with a file system."""
    with file.open("wb") as opened:
        opened.truncate(size)
    run("mkfs.ext4", "-q", "-F", file)


@contextmanager
def mounted(disk: Path, at: Path) -> Iterator[Path]:
    """The file system in the file `disk`."""
    at.mkdir(exist_ok=True)
    run("mount", "-o", "loop", disk, at)
    try:
        yield at
    finally:
        # A stopping lazyfsd has the store open until it has synced it.
        assert any(run("umount", at, code=None).returncode == 0 for _ in moments()), run("umount", at, code=None).stderr


def commit_names(file_system: Path) -> None:
    """Commit the journal of an ext4: any fsync makes all names durable."""
    path = file_system / "journal"
    with path.open("w") as file:
        file.write("commit")
        file.flush()
        os.fsync(file.fileno())


def cut(file_system: Path, disk: Path, copy: Path) -> None:
    """Copy the disk at a moment without writes in progress."""
    mount = mounted_at(file_system)
    assert mount is not None
    statistics = Path(f"/sys/dev/block/{mount.device}/stat")
    for _ in moments():
        before = _written(statistics)
        run("cp", "--sparse=always", disk, copy)
        if _written(statistics) == before:
            return
    raise AssertionError("the disk is never at rest")


def _written(statistics: Path) -> tuple[str, ...]:
    """Of a block device: writes completed, sectors written, requests in flight."""
    fields = statistics.read_text().split()
    return fields[4], fields[6], fields[8]
