"""A full disk: new chunks are refused, stored ones are read, and when there is room again, everything works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import StoreFull
from lazyfs.format.digest import digest_of
from lazyfs.store.content import Content
from lazyfs.store.store import Store
from tests.conftest import LogWatch
from tests.unit.store.contents import content, noise, read_all

ROOT = Path(__file__).parents[3]

LIMITED = """
import resource, sys
from pathlib import Path
from lazyfs.errors import StoreFull
from lazyfs.store.store import Store
from tests.unit.store.contents import content, noise, read_all
with Store.open(Path(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    small, large, several = content(noise(1000)), content(noise(400_000)), content(noise(250_000), noise(260_000))
    store.keep(small, 0, noise(1000))
    refused = 0
    for made, index, piece in ((large, 0, noise(400_000)), (several, 1, noise(260_000))):
        try:
            store.keep(made, index, piece)
        except StoreFull as error:
            refused += 1
    assert refused == 2, refused
    assert read_all(store, small) == [noise(1000)]
    assert read_all(store, large) == [None]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(store: Store, first: int) -> list[tuple[Content, bytes]]:
    """Keep small files until there is no room. Returns those that were kept."""
    kept = []
    for seed in range(first, first + 1000):
        piece = noise(10_000, seed)
        made = content(piece)
        try:
            store.keep(made, 0, piece)
        except StoreFull:
            return kept
        kept.append((made, piece))
    raise AssertionError("there is always room")


@pytest.mark.root
def test_a_full_disk(tiny: Path, expect_log: LogWatch) -> None:
    """Nothing partial has a final name, no file lacks its row, and no row its file. Once there is room, it is used."""
    directory = tiny / "store"
    with Store.open(directory) as store:
        with store.index._database.writing:  # no commit meanwhile: it would give up half of the rows, and make room
            kept = fill(store, 0)
            several = content(noise(50_000, 1), noise(60_000, 2))
            with pytest.raises(StoreFull, match=r"No space left|full"):
                store.keep(several, 0, noise(50_000, 1))
            assert os.listdir(directory / "partial") == []
            toc = noise(100_000)
            with pytest.raises(StoreFull, match="No space left"):
                store.keep_document(digest_of(toc), toc)
        assert os.listdir(directory / "documents") == []
        for made, piece in kept:
            assert read_all(store, made) in ([None], [piece])
    with Store.open(directory) as store:
        here = {made.name for made, piece in kept if read_all(store, made) == [piece]}
        assert here == set(os.listdir(directory / "objects"))
        assert here
        assert store.statistics().damaged == 0
        subprocess.run(["mount", "-o", "remount,size=8m", tiny], check=True)
        store.keep(several, 0, noise(50_000, 1))
        store.keep(several, 1, noise(60_000, 2))
        store.keep_document(digest_of(toc), toc)
        assert read_all(store, several) == [noise(50_000, 1), noise(60_000, 2)]
    with Store.open(directory) as store:
        assert store.missing(several, 0, 2) == []
        assert store.document(digest_of(toc)) == toc


@pytest.mark.root
def test_no_room_to_open(tiny: Path) -> None:
    """The error says that there is no room, not that the disk failed."""
    directory = tiny / "store"
    Store.open(directory).close()
    with pytest.raises(OSError, match="No space left"), (tiny / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreFull, match="cannot be opened"):
        Store.open(directory)


def test_a_limit_on_the_size_of_files(directory: Path) -> None:
    """RLIMIT_FSIZE fails like a full disk (and needs no root)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LIMITED, directory], check=True, env=environment)
    assert len(os.listdir(directory / "objects")) == 1
    assert os.listdir(directory / "tmp") == []
