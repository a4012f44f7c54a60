"""The file system without FUSE: the results of stat, and what a read finds ready."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.errors import HeldOff
from lazyfs.fetch.fetcher import open_fetcher
from lazyfs.fetch.piece import Piece, pieces_of
from lazyfs.format.entry import Entry
from lazyfs.store.store import Store
from lazyfs.vfs import filesystem
from lazyfs.vfs.filesystem import FileSystem, attributes
from lazyfs.vfs.tree import Tree
from tests.unit.fetch.scripted import RANDOM, ScriptedSource, make_layer


def test_device_numbers_are_what_mknod_keeps_of_them() -> None:
    """A TOC may claim 32 bits each; a full pull shows 12 and 20, and an unlistable directory would be useless."""
    tree = Tree([[Entry(b"dev", "char", major=2**32 - 1, minor=2**31 + 5), Entry(b"tty", "char", major=5, minor=1)]])
    found = {name: attributes(node).rdev for name, node in tree.walk() if name}
    assert found == {b"dev": (0xFFF, 5), b"tty": (5, 1)}
    assert os.makedev(*found[b"dev"]) < 1 << 32


async def test_a_read_that_fails_names_the_file(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Whatever has gone wrong: a host that wants to be left alone for longer than a read waits, as well."""
    autojump_clock.autojump_threshold = math.inf  # no time passes while a thread is at work: the read fails at once
    layer, blob = make_layer([(b"a", RANDOM.randbytes(1000))])
    entry = Entry(b"a", "reg", size=1000, chunks=tuple(piece.chunk for piece in layer.pieces))
    source = ScriptedSource(blob)
    source.held_off_until = trio.current_time() + 100
    with Store.open(tmp_path / "store") as store:
        async with open_fetcher(store, source) as fetcher:
            tree = Tree([[entry]])
            files = FileSystem(tree, [], fetcher)
            files._blobs[0] = layer
            (number,) = (node.ino for name, node in tree.walk() if name)
            with pytest.raises(HeldOff, match=r"cannot read 'a': .* in a while"):
                await files.read(number, 0, 5)


async def test_a_large_file_is_made_ready_once_and_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million chunks do not stop the event loop, and readers who come together wait for one; a small file goes when another comes."""
    monkeypatch.setattr(filesystem, "_MANY", 10)
    monkeypatch.setattr(filesystem, "_FILES", 2)
    contents = [RANDOM.randbytes(1000), RANDOM.randbytes(30), RANDOM.randbytes(30)]
    layer, blob = make_layer([(b"%d" % number, data) for number, data in enumerate(contents)], chunk_size=10)
    chunks = [piece.chunk for piece in layer.pieces]
    cuts = (0, 100, 103, 106)
    entries = [
        Entry(b"%d" % number, "reg", size=len(data), chunks=tuple(chunks[cuts[number] : cuts[number + 1]]))
        for number, data in enumerate(contents)
    ]
    made: list[tuple[bytes, bool]] = []

    def make(entry: Entry) -> tuple[Piece, ...]:
        made.append((entry.name, _in_the_loop()))
        return pieces_of(entry)

    monkeypatch.setattr(filesystem, "pieces_of", make)
    tree = Tree([entries])
    numbers = {name: node.ino for name, node in tree.walk() if name}
    with Store.open(tmp_path / "store") as store:
        async with open_fetcher(store, ScriptedSource(blob)) as fetcher:
            files = FileSystem(tree, [], fetcher)
            files._blobs[0] = layer
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(files.read, numbers[b"0"], 0, 5)
            for number in (1, 2, 1, 0):
                name = b"%d" % number
                assert await files.read(numbers[name], 5, 10) == contents[number][5:15]
    assert made == [(b"0", False), (b"1", True), (b"2", True), (b"0", False)]


def _in_the_loop() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
